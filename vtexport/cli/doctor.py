"""Say what this machine can do with vtexport and what is missing for the rest.

With a bundle it also opens that bundle and answers about a grey image with it. Ends with exit code 3 when bundles
cannot be run here.

examples:
  vtexport doctor
  vtexport doctor mini --json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Literal

from vtexport.bundle.dialects import DIALECTS, choose_dialect, why_not
from vtexport.cli.console import say, say_json
from vtexport.engines.rtx import check_installed
from vtexport.errors import MissingDependencyError, VtexportError, quoted

_EXPORT_PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "safetensors",
    "array-api-compat",
    "filelock",
    "polygraphy",
    "sentencepiece",
)

_RUN_IN = ("float32", "float16")  # precisions of bundles that ONNX Runtime runs

# benchmarks/results/native_cpu.json
WITHOUT = "PruneSID's selection takes half as long with it"


@dataclass
class Finding:
    """One thing looked at; `ability` names what depends on it."""

    ability: Literal["run bundles", "run on a GPU", "build bundles", "build RTX engines", "information"]
    status: Literal["ok", "missing"]
    what: str
    next_step: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle to try as well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Looks and reports."""
    gpu = _gpu()
    findings = [_system(), _onnxruntime(), _native(), gpu, *_export_packages(), _rtx(gpu.status == "ok"), _hub()]
    trial: VtexportError | None = None
    if args.bundle:
        try:
            findings.append(_try_bundle(args.bundle))
        except VtexportError as error:
            trial = error
    able = not any(f.ability == "run bundles" and f.status == "missing" for f in findings)
    if args.json:
        say_json({"findings": [asdict(finding) for finding in findings], "can_run_bundles": able})
    else:
        for finding in findings:
            step = f"\n         {finding.next_step}" if finding.next_step else ""
            say(f"{finding.status:8} {finding.what}{step}")
    if trial is not None:
        raise trial
    if not able:
        raise MissingDependencyError("bundles cannot be run here; see the steps above")
    return 0


def _system() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    what = (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"
    )
    return Finding("information", "ok", what)


def _onnxruntime() -> Finding:
    from vtexport.runtime.onnxruntime_backend import import_onnxruntime

    try:
        runtime = import_onnxruntime()
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", "ONNX Runtime", str(error))
    providers = ", ".join(runtime.get_available_providers())
    what, version = f"ONNX Runtime {runtime.__version__} ({providers})", runtime.__version__
    try:
        taken = {precision: choose_dialect(version, precision) for precision in _RUN_IN}
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", what, str(error))
    runs = ", ".join(f"{precision} by their {dialect} graphs" for precision, dialect in taken.items())
    reasons = [(each, why) for each in _RUN_IN if (why := why_not(DIALECTS[0], version, each))]
    left_out = "; ".join(f"{DIALECTS[0]} graphs are left out in {each}: {why}" for each, why in reasons)
    step = f"{left_out}; a newer version runs them, where there is one for this Python" if left_out else None
    return Finding("run bundles", "ok", f"{what} runs bundles: {runs}", step)


def _native() -> Finding:
    """Which form of the pruning ops runs on the CPU, and what the other would change."""
    from vtexport.plugins.libraries import choose_library
    from vtexport.plugins.native import Library

    choice = choose_library()
    if choice.library is None:
        return Finding(
            "information",
            "ok",
            f"pruning ops run as ONNX function bodies, because the native library cannot: {choice.reason}",
            "run vtexport plugins build, which takes a C++ compiler and CMake; the answers are the same, and "
            + WITHOUT,
        )
    try:
        instructions = Library(choice.library, "vtx_cpu_").text("instructions")
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", "the native library of the pruning ops", str(error))
    return Finding("information", "ok", f"pruning ops run natively on the CPU ({instructions}): {choice.library}")


def _gpu() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which(query[0]):
        try:
            done = subprocess.run(
                query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True
            )
            shown = done.stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            return Finding("run on a GPU", "missing", "NVIDIA GPU", f"nvidia-smi failed: {quoted(error)}")
        if shown:
            return Finding("run on a GPU", "ok", f"NVIDIA GPU: {'; '.join(shown.splitlines())}")
    return Finding("run on a GPU", "missing", "NVIDIA GPU", "none is seen; --device cpu works without one")


def _export_packages() -> list[Finding]:
    from vtexport.export.requirements import unfit

    found, missing = [], []
    for name in _EXPORT_PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    findings = [Finding("build bundles", "ok", f"for building: {', '.join(found)}")] if found else []
    if others := [f"{name} {version} ({needed} is needed)" for name, version, needed in unfit()]:
        step = "run pip install 'vtexport[export]' for versions that building works with"
        findings.append(Finding("build bundles", "missing", f"for building: {', '.join(others)}", step))
    if missing:
        step = "run pip install 'vtexport[export]' to build bundles here; running them needs none of these"
        findings.append(Finding("build bundles", "missing", f"for building: {', '.join(missing)}", step))
    return findings


def _rtx(has_gpu: bool) -> Finding:
    ability: Literal["build RTX engines"] = "build RTX engines"
    try:
        check_installed()
        import tensorrt_rtx
    except MissingDependencyError as error:
        return Finding(ability, "missing", "TensorRT-RTX", f"{error} to build engines here; that takes no GPU")
    except (ImportError, OSError) as error:  # its library is there and cannot be loaded
        step = f"{quoted(error)}; run pip install --force-reinstall 'vtexport[tensorrt-rtx]'"
        return Finding(ability, "missing", "TensorRT-RTX", step)
    running = "an NVIDIA GPU is there to run them" if has_gpu else "running them takes an NVIDIA GPU, and none is seen"
    return Finding(ability, "ok", f"TensorRT-RTX {tensorrt_rtx.__version__} builds engines here; {running}")


def _hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    state = "used where a model is not cached (HF_HUB_OFFLINE is not set); not tried here"
    return Finding(
        "information",
        "ok",
        f"model hub: {'HF_HUB_OFFLINE is set, only cached models are used' if offline else state}",
    )


def _try_bundle(folder: str) -> Finding:
    import numpy as np

    from vtexport.bundle.reader import open_bundle
    from vtexport.runtime.pipeline import Pipeline

    bundle = open_bundle(folder)
    tried = []
    for plan in bundle.manifest.plans:
        image = np.full((336, 336, 3), 128, np.uint8)
        answer = Pipeline(bundle, plan.name).generate(image, "What is this?", max_new_tokens=4)
        tried.append(
            f"{plan.name}: {answer.visual_tokens} visual tokens, first token {answer.timings_ms['first_token']:.0f} ms"
        )
    return Finding("information", "ok", f"{folder} answers ({'; '.join(tried)})")
