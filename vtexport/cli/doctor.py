"""Say what this machine can do with vtexport and what is missing for the rest.

With a bundle it also says which of its graphs each backend and target would run and how much memory it takes, opens it
and answers about a grey image with it. Ends with exit code 3 when bundles cannot be run here.

examples:
  vtexport doctor
  vtexport doctor mini --json
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import say, say_json
from vtexport.errors import MissingDependencyError, VtexportError
from vtexport.measure import findings as measuring
from vtexport.runtime import bundle_findings, findings
from vtexport.runtime.findings import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle to try as well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Looks and reports."""
    gpu = findings.gpu()
    devices = ("cpu", "cuda") if gpu.status == "ok" else ("cpu",)
    found = [findings.system(), findings.onnxruntime(), findings.native_library(), gpu, *export_packages()]
    found += [findings.tensorrt_rtx_builder(gpu.status == "ok"), *findings.tensorrt(), *findings.backends()]
    found += [measuring.clocks(), *measuring.power(devices), hub(), findings.telemetry()]
    trial: VtexportError | None = None
    if args.bundle:
        try:
            bundle = open_bundle(args.bundle)
            found += [*bundle_findings.graphs(bundle), measuring.memory(bundle)]
            found.append(bundle_findings.trial(bundle))
        except VtexportError as error:
            trial = error
    able = not any(f.ability == "run bundles" and f.status == "missing" for f in found)
    if args.json:
        say_json({"findings": [asdict(finding) for finding in found], "can_run_bundles": able})
    else:
        for finding in found:
            step = f"\n         {finding.next_step}" if finding.next_step else ""
            say(f"{finding.status:8} {finding.what}{step}")
    if trial is not None:
        raise trial
    if not able:
        raise MissingDependencyError("bundles cannot be run here; see the steps above")
    return 0


def export_packages() -> list[Finding]:
    """The packages that building takes: those that are there, of a version that does not serve, and missing."""
    from vtexport.export.requirements import installed, unfit

    versions = installed()
    found = [f"{name} {version}" for name, version in versions.items() if version is not None]
    others = [f"{name} {version} ({needed} is needed)" for name, version, needed in unfit()]
    missing = [name for name, version in versions.items() if version is None]
    said = [Finding("build bundles", "ok", f"for building: {', '.join(found)}")] if found else []
    if others:
        step = "run pip install 'vtexport[export]' for versions that building works with"
        said.append(Finding("build bundles", "missing", f"for building: {', '.join(others)}", step))
    if missing:
        step = "run pip install 'vtexport[export]' to build bundles here; running them needs none of these"
        said.append(Finding("build bundles", "missing", f"for building: {', '.join(missing)}", step))
    return said


def hub() -> Finding:
    """The setting by which models are fetched from the hub or not; the hub is not asked."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    state = "used where a model is not cached (HF_HUB_OFFLINE is not set); not tried here"
    return Finding(
        "information",
        "ok",
        f"model hub: {'HF_HUB_OFFLINE is set, only cached models are used' if offline else state}",
    )
