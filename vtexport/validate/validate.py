"""Validation of a bundle on a device: its proof is replayed by the backend that runs here, without PyTorch."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.manifest import MANIFEST_NAME, Plan
from vtexport.bundle.proof import PROOF_NAME, FoundProof, command_for, plan_digest, read_proof
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import BundleError, MissingDependencyError
from vtexport.measure.files import write_whole
from vtexport.measure.machine import describe_machine
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.prompt import PromptReader
from vtexport.runtime.vision import Preprocessed
from vtexport.validate.inputs import compare_pixels, compare_prompts
from vtexport.validate.replay import Replay
from vtexport.validate.report import FOLDER, KIND, NAME, SCHEMA_VERSION, Check, PlanChecks, Report, encode
from vtexport.version import installed_versions

_LIBRARIES = ("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "jinja2")
_NOT_ASKED = "no proof was made of it"


class NoProofError(MissingDependencyError):
    """A bundle, or a plan of it, without a proof."""


def validate(
    bundle: str | Path,
    *,
    plans: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    dialect: str | None = None,
    stage: Callable[[str], object] = lambda text: None,
    command: str = "",
) -> Report:
    """Replays a bundle's proof with the backend of a device.

    Args:
        bundle: the bundle's folder. Its files are not hashed: what differs shows in what they compute.
        plans: names of plans, adaptive ones for those that they choose from; all that have a proof when None.
        device, threads, dialect: as for `Pipeline.open`.
        stage: called with a line before each plan.
        command: recorded in the report.

    Returns:
        Every comparison with its verdict; `Report.failed` has those that failed.

    Raises:
        NoProofError: there is none, or none of a plan that was named.
        BundleError: the bundle or its proof is damaged.
        UsageError: no such plan, device or dialect.
        MissingDependencyError: the backend is not there.
        InputError: no such folder.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    found = read_proof(opened.folder, manifest)
    if found is None:
        raise NoProofError(
            f"{opened.folder} has no proof to validate by; make one where PyTorch and the checkpoint are, with "
            f"`{command_for(opened.folder, manifest)}`"
        )
    wanted, without = _choose(opened, found, plans)
    reader = PromptReader(opened)
    inputs: list[Check] = []
    images: list[Preprocessed] = []
    results, notes, backend, ops = [], list[str](), "", ""
    for number, plan in enumerate(wanted, 1):
        stage(f"replaying plan {number} of {len(wanted)}: {plan.name}")
        with Pipeline.open(bundle, plan.name, device=device, threads=threads, dialect=dialect) as pipeline:
            notes += [note for note in pipeline.notes if note not in notes]
            if not inputs:
                pixels, images = compare_pixels(found, manifest.image, pipeline.stages.preprocess)
                inputs = pixels + compare_prompts(found, reader)
            backend, native = pipeline.runs_on, pipeline.native
            ops = "native library" if native.library else f"function bodies ({native.reason})"
            checks = Replay(pipeline, reader, found, found.proof.plans[plan.name], images).run()
            graphs = sorted({name for chosen in pipeline.graphs for name in chosen.names})
            results.append(PlanChecks(plan=plan.name, graphs=graphs, checks=checks))
    proof = found.proof
    return Report(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        created_at=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command,
        bundle=str(bundle),
        bundle_name=manifest.name,
        manifest_sha256=hash_file(opened.path(MANIFEST_NAME)),
        proof_sha256=hash_file(found.folder / PROOF_NAME),
        precision=manifest.precision,
        device=device,
        backend=backend,
        pruning_ops=ops,
        threads=threads,
        machine=describe_machine(),
        versions=installed_versions(_LIBRARIES),
        proof_versions={plan.name: proof.plans[plan.name].versions for plan in wanted},
        prompts=proof.prompts,
        images=[each.origin for each in proof.images],
        cases=[f"image {case.image + 1}, prompt {case.prompt + 1}" for case in proof.cases],
        notes=notes,
        inputs=inputs,
        plans=results,
        without_proof=without,
    )


def _choose(bundle: Bundle, found: FoundProof, names: Sequence[str] | None) -> tuple[list[Plan], dict[str, str]]:
    """The plans to replay, and those that cannot be, with the reason.

    Raises:
        NoProofError: none of one that was named, or none at all.
    """
    manifest, proof = bundle.manifest, found.proof
    asked = manifest.plans if names is None else [plan for name in names for plan in bundle.plans_of(name)]
    wanted = list({plan.name: plan for plan in asked}.values())
    for plan in wanted:
        known = proof.plans.get(plan.name)
        if known is not None and known.plan_sha256 != plan_digest(manifest, plan):
            raise BundleError(
                f"the proof of the plan {plan.name} in {found.folder} is of another plan of that name; run "
                f"`{command_for(bundle.folder, manifest)}`"
            )
    without = {
        plan.name: proof.without_proof.get(plan.name, _NOT_ASKED) for plan in wanted if plan.name not in proof.plans
    }
    chosen = [plan for plan in wanted if plan.name in proof.plans]
    if without and (names is not None or not chosen):
        name, why = next(iter(without.items()))
        step = f"; run `{command_for(bundle.folder, manifest)}`" if why == _NOT_ASKED else ""
        raise NoProofError(f"the plan {name} of {bundle.folder} has no proof to validate by: {why}{step}")
    return chosen, without


def write_report(report: Report, path: Path) -> None:
    """Puts the report in place in one step; its usual place is `report_path`.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, encode(report))


def report_path(bundle: Path) -> Path:
    """The report's place in a bundle.

    Raises:
        UsageError: the bundle lies in the hub's cache, where nothing is written.
    """
    refuse_to_write(bundle)
    return bundle / FOLDER / NAME
