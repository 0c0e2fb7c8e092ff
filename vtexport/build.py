"""The build, from a checkpoint to a published bundle, as a recipe to read from top to bottom."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtexport.bundle import manifest as schema
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.publish import check_destination, staged
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.resolve import Checkpoint, Weights, open_checkpoint
from vtexport.errors import InputError, UsageError
from vtexport.export.describe import (
    describe_decoder,
    describe_files,
    describe_image,
    describe_plan,
    describe_route,
    describe_source,
    describe_text,
    describe_vision,
    time_now,
    versions,
)
from vtexport.export.earlier import carry_calibration, check_same_model, find_earlier, take_over, unchanged, weights_of
from vtexport.export.plan import Plan, Route, check_method, make_plans, make_route
from vtexport.export.weights import CopiedWeights, copy_weights, planned_bytes
from vtexport.models.spec import ImageSpec, ModelSpec

PRECISIONS = {"fp32": "float32", "fp16": "float16"}
WEIGHTS_PREFIX = "onnx/weights/"  # of weight files, relative to the bundle


@dataclass(frozen=True)
class Report:
    """Where a build tells what it does; every member may be replaced, by default it is silent."""

    stage: Callable[[str], None] = lambda text: None
    note: Callable[[str], None] = lambda text: None
    # A context manager around something of `total` bytes; it gives the function to call with each count done.
    bytes_done: Callable[[str, int], AbstractContextManager[Callable[[int], object]]] = field(
        default=lambda text, total: nullcontext(lambda count: None)
    )


def build(
    model: str,
    output: str | Path | None = None,
    *,
    method: str = "prunesid",
    keep: Sequence[int] | int | None = None,
    options: Mapping[str, Any] | None = None,
    dynamic: bool = False,
    mean: int | None = None,
    precision: str = "fp32",
    weights: Weights = "stored",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    replace: bool = False,
    report: Report | None = None,
    command: str = "",
) -> Bundle:
    """Exports a checkpoint with one plan for each budget and puts the bundle in place whole.

    Args:
        model: an alias, a hub id (`owner/name[@revision]`) or a checkpoint's folder.
        output: the bundle's folder; `./NAME` of the model when left out. Plans are added to a bundle of the same
            checkpoint that stands there; a plan of the same name is replaced.
        method: a pruning method (`vtexport list methods`).
        keep: visual tokens per image that enter the language model; several make several plans.
        options: the method's own parameters by name.
        dynamic: also a route, by which every image gets one of the budgets; `vtexport calibrate` sets it.
        mean: the average budget that the route aims at; the middle one when left out.
        precision: "fp32", or "fp16" for weights and the language model's arithmetic (docs/architecture.md says what
            stays in float32).
        weights: "stored", or "random" for the model's true shapes with seeded random values.
        seed: for random weights.
        cache_dir: where random checkpoints are kept.
        replace: discard a bundle that stands at the output instead of adding to it.
        report: what to call as the work goes on.
        command: recorded in the manifest.

    Raises:
        UsageError: a value is wrong, also when only the model's configuration shows it.
        InputError: the checkpoint cannot be used or the output cannot be written.
    """
    report = report or Report()
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} cannot be exported yet; give {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    check_method(method, options or {})
    if mean is not None and not dynamic:
        raise UsageError("--mean is the average that a route aims at and has no meaning without --dynamic; add it")
    if output is not None:
        if not str(output):
            raise UsageError("the output is empty; give a folder's name with -o/--output")
        check_destination(Path(output))

    report.stage(f"reading the checkpoint {model}")
    checkpoint = open_checkpoint(
        model, weights=weights, seed=seed, cache_dir=Path(cache_dir) if cache_dir else None, notify=report.note
    )
    spec: ModelSpec = checkpoint.family.model_spec(checkpoint.config, checkpoint.folder)
    image = checkpoint.family.image_spec(checkpoint.folder, spec.vision)
    budgets = [keep] if isinstance(keep, int) else keep
    plans = make_plans(method, budgets, options or {}, spec)
    route = make_route(plans, mean) if dynamic else None
    destination = Path(output) if output is not None else Path(bundle_name(checkpoint))
    check_destination(destination)
    is_unchanged = unchanged(destination)
    earlier = find_earlier(destination, replace=replace)
    if (destination / "engines").is_dir():
        report.note(f"the engines of {destination} are of its present graphs and go; run `vtexport compile` afterwards")
    if earlier is None:
        _check_space(checkpoint, destination, dtype)

    with staged(destination, before_exchange=None if replace else is_unchanged) as folder:
        manifest = _write_bundle(folder, checkpoint, spec, image, plans, route, dtype, earlier, report, command)
        manifest.name = destination.name
        (folder / schema.MANIFEST_NAME).write_bytes(schema.encode(manifest))
        if earlier is not None:
            carry_calibration(earlier, folder, manifest, report.note)
        open_bundle(folder)  # what cannot be opened is not published
    return open_bundle(destination)


def bundle_name(checkpoint: Checkpoint) -> str:
    """The folder a bundle gets when the user names none: the model's own name."""
    source = checkpoint.source
    if source.kind == "alias" and source.weights == "random":
        return source.requested
    return source.id.rstrip("/").rsplit("/", 1)[-1] if source.kind != "folder" else f"{checkpoint.folder.name}-bundle"


def _write_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    image: ImageSpec,
    plans: Sequence[Plan],
    route: Route | None,
    dtype: str,
    earlier: Bundle | None,
    report: Report,
    command: str,
) -> schema.Manifest:
    # Heavy imports wait until the arguments are known to be right.
    from vtexport.export.graphs import GraphExporter
    from vtexport.export.text import write_text_files

    weights = _place_weights(folder, checkpoint, dtype, earlier, report)

    report.stage("writing tokenizer and chat template")
    image_token, bos_token = write_text_files(
        checkpoint.folder, folder, spec.image_token_id, checkpoint.family.CHAT_TEMPLATE, report.note
    )

    exporter = GraphExporter(
        checkpoint.config,
        spec,
        weights.tensors,
        folder / "onnx",
        dtype,
        weights_base=(earlier.folder if earlier else folder) / "onnx",
    )
    described, created_at = [], time_now()
    for plan in plans:
        report.stage(f"exporting {plan.name}: {spec.vision.tokens} -> {plan.keep} visual tokens")
        for remark in plan.remarks:
            report.note(remark)
        described.append(describe_plan(plan, exporter.plan(plan), command, created_at))
    routes = [describe_route(route, command, created_at)] if route else []
    graphs = dict(exporter.graphs)
    known_hashes = {WEIGHTS_PREFIX + name: digest for name, digest in weights.written_hashes.items()}
    if earlier is not None:
        take_over(earlier, known_hashes, folder)
        kept = [plan for plan in earlier.manifest.plans if plan.name not in {new.name for new in plans}]
        used = {name for plan in kept for name in plan.graph_names()} - set(graphs)
        graphs |= {name: earlier.manifest.graphs[name] for name in used}
        known_hashes |= take_over(earlier, (earlier.manifest.graphs[name].file for name in sorted(used)), folder)
        described = kept + described
        routes = [old for old in earlier.manifest.routes if route is None or old.name != route.name] + routes
    report.stage(f"checking {len(exporter.graphs)} graphs")
    exporter.check(report.note)
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name="",
        created_at=created_at,
        command=command,
        versions=versions(),
        family=spec.family,
        precision=dtype,  # type: ignore[arg-type]
        source=describe_source(checkpoint, weights.source_hashes),
        vision=describe_vision(spec),
        image=describe_image(image),
        text=describe_text(spec, image_token, bos_token, weights.tensors, WEIGHTS_PREFIX),
        decoder=describe_decoder(spec),
        graphs=graphs,
        plans=described,
        files=describe_files(folder, known_hashes),
        routes=routes,
    )


def _place_weights(
    folder: Path, checkpoint: Checkpoint, dtype: str, earlier: Bundle | None, report: Report
) -> CopiedWeights:
    """The weights copied from the checkpoint, or those of the earlier bundle after a look that they are the same."""
    target = folder / WEIGHTS_PREFIX
    target.mkdir(parents=True)
    total = sum(path.stat().st_size for path in checkpoint.weight_files)
    if earlier is None:
        report.stage(f"copying {total / 1e6:,.1f} MB of weights")
        with report.bytes_done("weights", total) as progress:
            return copy_weights(checkpoint.tensors, target, dtype, progress)
    report.stage(f"adding to {earlier.folder}; comparing {total / 1e6:,.1f} MB of weights with those it was made of")
    with report.bytes_done("weights", total) as progress:
        source_hashes = {path.name: hash_file(path, progress) for path in checkpoint.weight_files}
    check_same_model(earlier, describe_source(checkpoint, source_hashes), dtype)
    files = earlier.manifest.files.items()
    written_hashes = {
        name.removeprefix(WEIGHTS_PREFIX): f.sha256 for name, f in files if name.startswith(WEIGHTS_PREFIX)
    }
    return CopiedWeights(weights_of(earlier, WEIGHTS_PREFIX, checkpoint), source_hashes, written_hashes)


def _check_space(checkpoint: Checkpoint, destination: Path, dtype: str) -> None:
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    needed = planned_bytes(checkpoint.tensors, dtype)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{existing} has {free / 1e6:,.0f} MB free and the bundle takes {needed / 1e6:,.0f} MB; "
            "choose another -o/--output"
        )
