"""Making a bundle's proof: what PyTorch answers with the checkpoint, as a recipe to read from top to bottom."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtexport.assemble.describe import time_now, versions
from vtexport.assemble.progress import BuildProgress
from vtexport.bundle.manifest import Image, Plan
from vtexport.bundle.proof import (
    INPUTS_NAME,
    SCHEMA_VERSION,
    Case,
    FoundProof,
    PlanProof,
    Proof,
    ProofImage,
    plan_digest,
    read_proof,
    write_proof,
)
from vtexport.bundle.publish import check_destination
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import BundleError, InputError, UsageError, VtexportError, quoted
from vtexport.proof import images as pictures
from vtexport.proof.estimate import estimate
from vtexport.proof.images import Picture
from vtexport.proof.reference import Prompt, Reference, check_torch, find_checkpoint

NEW_TOKENS = 32
PROMPTS = ("Is there a red circle?", "Describe what is in the picture, from left to right.")
PRUNED_FAMILIES = ("llava",)  # that `vtexport.pruning.apply` takes; a family derived from one has its name
_LIBRARIES = ("torch", "pillow", "tokenizers")


@dataclass(frozen=True)
class _Inputs:
    """Pictures and questions, and the earlier proof whose answers to the same stay."""

    images: list[Picture]
    prompts: list[str]
    earlier: FoundProof | None


def prove(
    bundle: str | Path | Bundle,
    checkpoint: str | None = None,
    *,
    plans: Sequence[str] | None = None,
    images: Sequence[str | Path] | None = None,
    prompts: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    report: BuildProgress | None = None,
    command: str = "",
) -> Proof:
    """Records what PyTorch answers for a bundle's plans and puts it into the bundle's folder `proof/`, whole.

    The model is the checkpoint as transformers loads it, in float32 whatever the bundle's precision, pruned by
    `vtexport.pruning.apply`. Proofs of plans that are not named stay.

    Args:
        bundle: the bundle or its folder.
        checkpoint: what it was made of: an alias, a hub id or a folder; the one that its manifest names when None.
        plans: names of plans, adaptive ones for those that they choose from; all when None.
        images: files to ask about; those of the earlier proof when None, or two generated ones.
        prompts: questions; the earlier proof's when None, or `PROMPTS`. Image i is asked question i, and the shorter of
            both begins again.
        cache_dir: for random weights.
        report: what to call as the work goes on.
        command: recorded in the proof.

    Returns:
        The proof that is in place. Plans that PyTorch has no answer for are in `without_proof` with the reason.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        UsageError: no such plan or checkpoint, another checkpoint than the bundle's, or images and prompts that would
            part the plans' proofs.
        InputError: a file cannot be read or written.
        BundleError: the bundle is damaged, or the earlier proof that plans are to be added to.
    """
    check_torch()
    report = report or BuildProgress()
    bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_destination(bundle.folder / "proof", "proof.json")
    manifest = bundle.manifest
    check_family(bundle)
    wanted = _plans(bundle, plans)
    every = {plan.name for plan in wanted} == {plan.name for plan in manifest.plans}
    inputs = _inputs(bundle, images, prompts, every=every, report=report)
    cases = [
        Case(image=number % len(inputs.images), prompt=number % len(inputs.prompts))
        for number in range(max(len(inputs.images), len(inputs.prompts)))
    ]
    report.stage(f"proving {len(wanted)} plans by PyTorch: {estimate(manifest, wanted, len(cases), NEW_TOKENS)}")
    total = sum(size.bytes for parts in manifest.weights.values() for size in parts)
    with report.bytes_done("comparing the checkpoint", total) as progress:
        found = find_checkpoint(bundle, checkpoint, Path(cache_dir) if cache_dir else None, report.note, progress)
    report.stage("loading the checkpoint with transformers, in float32")
    reference = Reference(found, manifest.vision.largest.tokens)
    asked = [reference.prompt(text, inputs.images[0].image) for text in inputs.prompts]
    pixels = [reference.pixels(each.image, each.origin) for each in inputs.images]
    made = time_now(), command, versions() | _versions()
    files: dict[str, bytes] = {INPUTS_NAME: _packed_inputs(pixels, asked, manifest.image)}
    answered, without = {}, {}
    for number, plan in enumerate(wanted, 1):
        report.stage(f"asking PyTorch, plan {number} of {len(wanted)}: {plan.name}")
        try:
            files[file_of(plan)], answered[plan.name] = _record(
                reference, bundle, plan, [(pixels[case.image], asked[case.prompt]) for case in cases], made
            )
        except UsageError as error:  # `apply` does not take this model or method; anything else is no proof either
            without[plan.name] = str(error)
            report.note(f"the plan {plan.name} has no proof, because {error}")
    return _publish(bundle, inputs, _describe(inputs, pixels, cases, manifest.precision), answered, without, files)


def check_family(bundle: Bundle) -> None:
    """Refuses bundles whose model has no PyTorch side that prunes.

    Raises:
        UsageError: with the families that have one.
    """
    if bundle.manifest.family not in PRUNED_FAMILIES:
        raise UsageError(
            f"{bundle.folder} is of the family {bundle.manifest.family}, for which vtexport has no PyTorch side that "
            f"prunes, so there is nothing to prove it by; families with one: {', '.join(PRUNED_FAMILIES)}"
        )


def _plans(bundle: Bundle, names: Sequence[str] | None) -> list[Plan]:
    if names is None:
        return list(bundle.manifest.plans)
    chosen = {plan.name: plan for name in names for plan in bundle.plans_of(name)}
    return list(chosen.values())


def _inputs(
    bundle: Bundle,
    images: Sequence[str | Path] | None,
    prompts: Sequence[str] | None,
    *,
    every: bool,
    report: BuildProgress,
) -> _Inputs:
    """The inputs, and the earlier proof where its other plans' answers stay.

    Raises:
        UsageError: other inputs than those of plans that would stay, or an empty list.
        BundleError: the earlier proof is damaged and plans would stay.
    """
    if (images is not None and not images) or (prompts is not None and not prompts):
        raise UsageError("a proof takes one image and one prompt at the least; leave both out for the usual ones")
    try:
        earlier = read_proof(bundle.folder, bundle.manifest)
    except BundleError as error:
        if not every:
            raise
        report.note(f"the earlier proof is replaced ({quoted(error)})")
        earlier = None
    if earlier is not None and images is None and prompts is None:
        known = [(earlier.folder / each.file, each.origin) for each in earlier.proof.images]
        return _Inputs(pictures.stored(known), earlier.proof.prompts, earlier)
    if earlier is not None and not every:
        others = ", ".join(sorted(earlier.proof.plans))
        raise UsageError(
            f"the proofs in {earlier.folder} ({quoted(others, earlier.folder)}) are of other images or prompts; leave "
            "out --plan to make all anew, or --image and --prompt"
        )
    return _Inputs(
        pictures.given(images) if images is not None else pictures.generated(),
        list(prompts) if prompts is not None else list(PROMPTS),
        None,
    )


def _record(
    reference: Reference,
    bundle: Bundle,
    plan: Plan,
    questions: list[tuple[np.ndarray, Prompt]],
    made: tuple[str, str, dict[str, str]],
) -> tuple[bytes, PlanProof]:
    from vtexport.proof.record import record_plan  # which imports torch

    return record_plan(
        reference,
        plan,
        questions,
        precision=bundle.manifest.precision,
        new_tokens=NEW_TOKENS,
        file=file_of(plan),
        digest=plan_digest(bundle.manifest, plan),
        made=made,
    )


def file_of(plan: Plan) -> str:
    """The name of a plan's file of arrays: letters and digits of its name, and a hash of all of it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plan.name)[:80]
    return f"{plain}.{hashlib.sha256(plan.name.encode()).hexdigest()[:8]}.npz"


def _packed_inputs(pixels: Sequence[np.ndarray], prompts: Sequence[Prompt], settings: Image) -> bytes:
    from vtexport.proof.record import packed

    arrays = {f"levels.{number}": _levels(each, settings) for number, each in enumerate(pixels)}
    for number, prompt in enumerate(prompts):
        arrays |= {
            f"prompt.{number}.before": prompt.before.astype(np.int32),
            f"prompt.{number}.after": prompt.after.astype(np.int32),
            f"prompt.{number}.question": prompt.question.astype(np.int32),
        }
    return packed(arrays)


def _levels(pixels: np.ndarray, settings: Image) -> np.ndarray:
    """[H, W, 3] uint8: `pixel_values` [1, 3, H, W] without the last steps of an image processor."""
    mean, std = (np.asarray(each, np.float64)[:, None, None] for each in (settings.mean, settings.std))
    exact = (pixels[0].astype(np.float64) * std + mean) / settings.rescale
    levels = np.rint(exact)
    if np.abs(exact - levels).max() > 0.05 or levels.min() < 0 or levels.max() > 255:
        raise InputError(f"the pixels of {settings.processor} are no levels of 8 bits; a proof takes no others")
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _describe(inputs: _Inputs, pixels: Sequence[np.ndarray], cases: list[Case], precision: str) -> Proof:
    return Proof(
        schema_version=SCHEMA_VERSION,
        manifest_sha256="0" * 64,  # both are filled in where it is written
        files={},
        precision=precision,  # type: ignore[arg-type]
        new_tokens=NEW_TOKENS,
        images=[
            ProofImage(
                file=f"image-{number}.png",
                origin=picture.origin,
                width=picture.image.width,
                height=picture.image.height,
                pixels_sha256=hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
            )
            for number, (picture, values) in enumerate(zip(inputs.images, pixels, strict=True))
        ],
        prompts=inputs.prompts,
        cases=cases,
        plans={},
    )


def _publish(
    bundle: Bundle,
    inputs: _Inputs,
    proof: Proof,
    answered: dict[str, PlanProof],
    without: dict[str, str],
    files: dict[str, bytes],
) -> Proof:
    """Puts it in place, with the answers of the earlier proof to plans that were not asked anew."""
    present = {plan.name: plan_digest(bundle.manifest, plan) for plan in bundle.manifest.plans}
    stay: dict[str, PlanProof] = {}
    if inputs.earlier is not None:
        before = inputs.earlier.proof
        known = {name: each for name, each in before.plans.items() if present.get(name) == each.plan_sha256}
        stay = {name: each for name, each in known.items() if name not in answered and name not in without}
        without = {name: why for name, why in before.without_proof.items() if name not in answered} | without
    proof.plans, proof.without_proof = stay | answered, without
    files |= {each.file: _bytes_of(inputs, each.file) for each in stay.values()}
    for described, picture in zip(proof.images, inputs.images, strict=True):
        files[described.file] = picture.png

    def fill(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    write_proof(bundle.folder, proof, fill)
    found = read_proof(bundle.folder, bundle.manifest)
    if found is None:
        raise VtexportError(f"{bundle.folder} lost its proof while it was written; run `vtexport prove` again")
    return found.proof


def _bytes_of(inputs: _Inputs, name: str) -> bytes:
    assert inputs.earlier is not None
    return (inputs.earlier.folder / name).read_bytes()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
