"""The build, from a checkpoint to a published bundle, as a recipe to read from top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtexport.assemble.describe import (
    describe_adaptive_plan,
    describe_decoder,
    describe_embedding,
    describe_plan,
    describe_source,
    describe_vision,
    describe_weights,
    hash_small_files,
    time_now,
    versions,
)
from vtexport.assemble.earlier import (
    check_same_making,
    check_same_model,
    find_earlier,
    kept_adaptive_plans,
    kept_plans,
)
from vtexport.assemble.progress import BuildProgress
from vtexport.assemble.writer import Writer, open_writer
from vtexport.bundle import manifest as schema
from vtexport.bundle.publish import check_destination
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.readable import readable_folder
from vtexport.checkpoint.resolve import Checkpoint, Located, Weights, locate, open_weights, said_of, small_files
from vtexport.dtypes import PRECISIONS
from vtexport.errors import InputError, UsageError
from vtexport.export.plan import (
    AdaptivePlanSpec,
    PlanSpec,
    check_parts,
    check_stored,
    make_adaptive_plan,
    make_plans,
    shape_of,
)
from vtexport.export.requirements import check_versions
from vtexport.models.parts import ModelSpec
from vtexport.processing.read import Processing, read_processing
from vtexport.processing.self_check import sample_pixels
from vtexport.pruning import get_method, make_options

if TYPE_CHECKING:
    from vtexport.export.graphs import GraphExporter

Report = BuildProgress  # its former name, which callers import


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which walks the exporter's modules and growing graphs again and again: a
    sixth of an export's time for next to nothing that is freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
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
    link_weights: bool = False,
    check: bool = True,
    report: BuildProgress | None = None,
    command: str = "",
) -> Bundle:
    """Exports a checkpoint with one plan for each budget and puts the bundle in place whole.

    Args:
        model: an alias, a hub id (`owner/name[@revision]`) or a checkpoint's folder.
        output: the bundle's folder; `./NAME` of the model when left out. Plans are added to a bundle of the same
            checkpoint that stands there; a plan of the same name is replaced.
        method: a pruning method (`vtexport list methods`).
        keep: visual tokens per image that enter the language model, or their mean over its layers for methods that
            also prune inside it; several make several plans.
        options: the method's own parameters by name.
        dynamic: also an adaptive plan, by which every image gets one of the budgets; `vtexport adapt` sets it.
        mean: the average budget that the adaptive plan aims at; the middle one when left out.
        precision: "fp32", or "fp16" or "bf16" for weights and the language model's arithmetic (docs/architecture.md
            says what stays in float32). ONNX Runtime does not run a bundle in bf16 on the CPU: it is for engines.
        weights: "stored", or "random" for the model's true shapes with seeded random values.
        seed: for random weights.
        cache_dir: where random checkpoints are kept.
        replace: discard a bundle that stands at the output instead of adding to it.
        link_weights: copy no weights: reflink them, or, where `output` is the checkpoint's own folder, write the graphs
            beside them. Where neither can be done the build is refused.
        check: compare the vision tower's features of one image with PyTorch's, where that is installed.
        report: what to call as the work goes on.
        command: recorded in the manifest.

    Raises:
        UsageError: a value is wrong, also when only the model's configuration shows it.
        InputError: the checkpoint cannot be used or the output cannot be written.
        MissingDependencyError: a package is not installed, or not in a version that building works with.
    """
    check_versions()
    report = report or BuildProgress()
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} cannot be exported yet; give {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision].name
    chosen = get_method(method)
    given = make_options(chosen, options or {})
    if mean is not None and not dynamic:
        raise UsageError("--mean is what an adaptive plan aims at and has no meaning without --dynamic; add it")
    if output is not None:
        if not str(output):
            raise UsageError("the output is empty; give a folder's name with -o/--output")
        if not link_weights:  # then it may be the checkpoint's folder
            check_destination(Path(output))

    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        report.note(text)

    # All that can be refused is, by the small files alone: before weights are fetched, written or copied.
    report.stage(f"reading the checkpoint {model}")
    located = locate(model, weights=weights, seed=seed, notify=note)
    spec = located.model.spec
    destination = Path(output) if output is not None else Path(bundle_name(located))
    _judge_output(destination, dtype, replace=replace, link_weights=link_weights)
    plans = make_plans(chosen, [keep] if isinstance(keep, int) else keep, given, shape_of(spec))
    check_parts(plans, spec)
    adaptive = make_adaptive_plan(plans, mean) if dynamic else None
    with small_files(located) as small, readable_folder(small) as folder, said_of(located.folder, folder, note) as said:
        small_hashes = hash_small_files(small)
        report.stage("comparing pixels and token ids with transformers'")
        processing = read_processing(folder, located.family, located.config, spec, said)

    checkpoint = open_weights(located, cache_dir=Path(cache_dir) if cache_dir else None, notify=note)
    check_stored(plans, spec, checkpoint.absent)
    spec = spec.with_head(checkpoint.head, checkpoint.embedding)
    work = _Work(checkpoint, spec, processing, small_hashes, plans, adaptive, dtype, check, report, notes, command)
    with open_writer(
        destination, checkpoint, dtype, link_weights=link_weights, replace=replace, report=report
    ) as writer:
        writer.publish(_write_bundle(writer, work))
    return open_bundle(destination)


def _judge_output(destination: Path, dtype: str, *, replace: bool, link_weights: bool) -> None:
    """Refuses what stands at the output and can be neither replaced nor added to, before weights are touched."""
    if not link_weights:  # then it may be the checkpoint's folder
        check_destination(destination)
    earlier = find_earlier(destination, replace=replace)
    if earlier is not None:
        check_same_making(earlier, dtype)


def bundle_name(located: Located) -> str:
    """The folder a bundle gets when the user names none: the model's own name."""
    source = located.source
    if source.kind == "alias" and source.weights == "random":
        return source.requested
    return source.id.rstrip("/").rsplit("/", 1)[-1] if source.kind != "folder" else f"{located.folder.name}-bundle"


@dataclass(frozen=True)
class _Work:
    """One build's job: what to make of which checkpoint, known before anything is written."""

    checkpoint: Checkpoint
    spec: ModelSpec
    processing: Processing
    small_hashes: dict[str, str]  # of the small files, from before they were read
    plans: Sequence[PlanSpec]
    adaptive: AdaptivePlanSpec | None
    dtype: str
    check: bool  # features against PyTorch's
    report: BuildProgress
    notes: list[str]
    command: str


def _write_bundle(writer: Writer, work: _Work) -> schema.Manifest:
    """Every file of the bundle, and its manifest, which is still to be published."""
    # Heavy imports wait until the arguments are known to be right.
    from vtexport.export.graphs import GraphExporter

    checkpoint, report = work.checkpoint, work.report
    weights = writer.place_weights(checkpoint, work.dtype)
    source_files = weights.source_hashes | work.small_hashes
    check_same_model(writer.earlier, source_files, work.dtype)

    report.stage("writing tokenizer and chat template")
    writer.put_texts(work.processing.files, checkpoint.folder)
    source = describe_source(checkpoint, weights.source_hashes)  # the last look at the checkpoint
    if source.files != source_files:
        raise InputError(f"{checkpoint.folder} changed while it was read; restore the checkpoint and build again")

    exporter = GraphExporter(
        work.spec, weights.tensors, writer.graphs, work.dtype, writer.weights_base, writer.graphs_prefix
    )
    plans = _export_plans(exporter, work)
    kept, kept_graphs = kept_plans(writer.earlier, work.plans, exporter.graphs)
    writer.take_over(graph.file for graph in kept_graphs.values())
    report.stage(f"checking {len(exporter.graphs)} graphs")
    exporter.check(report.note)
    if work.check:
        work.processing.self_check.features_error = _compare_features(exporter, plans[-1], work)

    for name, graph in exporter.graphs.items():
        graph.file = writer.settle(exporter.path(name))
    text = work.processing.with_embedding(describe_embedding(work.spec, weights.tensors, writer.weights_prefix))
    text.tokenizer = writer.settle(writer.texts / schema.TOKENIZER_NAME)
    text.chat_template = writer.settle(writer.texts / schema.TEMPLATE_NAME)
    created_at = plans[-1].created_at
    adaptive_plans = kept_adaptive_plans(writer.earlier, work.adaptive)
    if work.adaptive is not None:
        adaptive_plans.append(describe_adaptive_plan(work.adaptive, work.command, created_at))
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name=writer.name,
        created_at=created_at,
        command=work.command,
        versions=versions(),
        family=work.spec.family,
        precision=work.dtype,  # type: ignore[arg-type]
        weights=describe_weights(work.spec, weights.tensors),
        source=source,
        vision=describe_vision(work.spec),
        image=work.processing.image,
        text=text,
        generation=work.processing.generation,
        self_check=work.processing.self_check,
        notes=work.notes,
        decoder=describe_decoder(work.spec),
        position_ids=schema.PositionIds(kind="sequential", axes=1),
        images_per_prompt=work.spec.images_per_prompt,
        graphs=exporter.graphs | kept_graphs,
        plans=[*kept, *plans],
        adaptive_plans=adaptive_plans,
        files=writer.describe(source),
    )


def _compare_features(exporter: GraphExporter, plan: schema.Plan, work: _Work) -> float | None:
    """The error of the tower's features against PyTorch's, of which `report` is told; None where neither can run."""
    from vtexport.assemble.weights import named_if_it_vanishes
    from vtexport.export.compare import feature_error, reason_not_to_compare

    reasons = {
        name: reason_not_to_compare(work.dtype, exporter.graphs[name].needs.opset) for name in plan.graphs.vision
    }
    able = [name for name, reason in reasons.items() if reason is None]
    if not able:
        work.report.note(f"{next(iter(reasons.values()))}, so the vision tower's features were not compared")
        return None
    work.report.stage("comparing the vision tower's features with PyTorch's")
    pixels = sample_pixels(work.processing.image)
    checkpoint = work.checkpoint
    with named_if_it_vanishes():
        return feature_error(
            exporter.path(able[0]),
            work.spec.vision,
            checkpoint.config.vision_config,
            checkpoint.tensors,
            pixels,
            work.dtype,
        )


def _export_plans(exporter: GraphExporter, work: _Work) -> list[schema.Plan]:
    described, created_at = [], time_now()
    noted: set[str] = set()  # what holds for every budget of a method is said once
    for plan in work.plans:
        work.report.stage(f"exporting {plan.name}: {work.spec.vision.tokens} -> {plan.visual_tokens} visual tokens")
        for remark in plan.remarks:
            if remark not in noted:
                work.report.note(remark)
        noted.update(plan.remarks)
        described.append(describe_plan(plan, exporter.plan(plan), work.command, created_at))
    return described
