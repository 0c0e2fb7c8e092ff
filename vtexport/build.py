"""The build, from a checkpoint to a published bundle, as a recipe to read from top to bottom."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtexport.assemble.describe import (
    describe_adaptive_plan,
    describe_decoder,
    describe_embedding,
    describe_files,
    describe_own_files,
    describe_plan,
    describe_source,
    describe_vision,
    hash_small_files,
    time_now,
    versions,
)
from vtexport.assemble.earlier import (
    carry_adaptations,
    check_same_making,
    check_same_model,
    checked,
    find_earlier,
    kept_plans,
    take_over,
    unchanged,
    weights_of,
)
from vtexport.assemble.in_place import TEXT_FOLDER, UNFINISHED, InPlace, in_place
from vtexport.assemble.link import check_linkable, reflink_weights, weights_in_place
from vtexport.assemble.weights import PlacedWeights, copy_weights, named_if_it_vanishes, planned_bytes
from vtexport.bundle import manifest as schema
from vtexport.bundle.adaptive import refuse_former_name
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest_json import encode
from vtexport.bundle.publish import check_destination, staged
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.readable import readable_folder
from vtexport.checkpoint.resolve import Checkpoint, Located, Weights, locate, open_weights, said_of, small_files
from vtexport.dtypes import PRECISIONS
from vtexport.errors import InputError, UsageError
from vtexport.export.plan import AdaptivePlanSpec, PlanSpec, check_stored, make_adaptive_plan, make_plans, shape_of
from vtexport.export.requirements import check_versions
from vtexport.models.spec import ModelSpec
from vtexport.processing.read import Processing, read_processing
from vtexport.processing.text import copy_settings
from vtexport.pruning import get_method, make_options

if TYPE_CHECKING:
    from vtexport.export.graphs import GraphExporter

WEIGHTS_PREFIX = "onnx/weights/"  # of weight files, relative to the bundle


@dataclass(frozen=True)
class BuildProgress:
    """Functions that a build calls as it goes on; every member may be replaced, by default it is silent."""

    stage: Callable[[str], None] = lambda text: None
    note: Callable[[str], None] = lambda text: None
    # A context manager around something of `total` bytes; it gives the function to call with each count done.
    bytes_done: Callable[[str, int], AbstractContextManager[Callable[[int], object]]] = field(
        default=lambda text, total: nullcontext(lambda count: None)
    )


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
    spec: ModelSpec = located.family.model_spec(located.config, located.folder)
    destination = Path(output) if output is not None else Path(bundle_name(located))
    _judge_output(destination, dtype, replace=replace, link_weights=link_weights)
    plans = make_plans(chosen, [keep] if isinstance(keep, int) else keep, given, shape_of(spec))
    adaptive = make_adaptive_plan(plans, mean) if dynamic else None
    with small_files(located) as small, readable_folder(small) as folder, said_of(located.folder, folder, note) as said:
        small_hashes = hash_small_files(small)
        report.stage("comparing pixels and token ids with transformers'")
        processing = read_processing(folder, located.family, located.config, spec, said)

    checkpoint = open_weights(located, cache_dir=Path(cache_dir) if cache_dir else None, notify=note)
    check_stored(plans, spec, checkpoint.absent)
    spec = spec.with_head(checkpoint.head, checkpoint.embedding)
    work = _Work(
        checkpoint, spec, processing, small_hashes, plans, adaptive, dtype, link_weights, report, notes, command
    )
    if link_weights:
        check_linkable(checkpoint.tensors, dtype)
        if destination.resolve() == checkpoint.folder.resolve():
            with in_place(checkpoint.folder.resolve()) as writer:
                writer.publish(_write_in_place(writer, work, find_earlier(writer.folder, replace=replace)))
            return open_bundle(destination)
    check_destination(destination)
    is_unchanged = unchanged(destination)
    earlier = find_earlier(destination, replace=replace)
    if (destination / "engines").is_dir():
        report.note(f"the engines of {destination} are of its present graphs and go; run `vtexport compile` afterwards")
    if earlier is None and not link_weights:
        _check_space(checkpoint, destination, dtype)

    with staged(destination, before_exchange=None if replace else is_unchanged) as folder:
        manifest = _write_bundle(folder, work, earlier)
        manifest.name = destination.name
        (folder / schema.MANIFEST_NAME).write_bytes(encode(manifest))
        if earlier is not None:
            carry_adaptations(earlier, folder, manifest, report.note)
        open_bundle(folder)  # what cannot be opened is not published
    return open_bundle(destination)


def _judge_output(destination: Path, dtype: str, *, replace: bool, link_weights: bool) -> None:
    """Refuses what stands at the output and can be neither replaced nor added to, before weights are touched."""
    if not link_weights:  # then it may be the checkpoint's folder
        check_destination(destination)
    earlier = find_earlier(destination, replace=replace)
    if earlier is not None:
        check_same_making(earlier, dtype)
        refuse_former_name(earlier.folder, earlier.manifest)


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
    link_weights: bool
    report: BuildProgress
    notes: list[str]
    command: str


def _write_bundle(folder: Path, work: _Work, earlier: Bundle | None) -> schema.Manifest:
    """The whole bundle in `folder`, the manifest aside."""
    # Heavy imports wait until the arguments are known to be right.
    from vtexport.export.graphs import GraphExporter

    checkpoint, report = work.checkpoint, work.report
    weights = _place_weights(folder, work, earlier)

    report.stage("writing tokenizer and chat template")
    work.processing.files.write(folder)
    copy_settings(checkpoint.folder, folder)
    source = describe_source(checkpoint, weights.source_hashes)  # the last look at the checkpoint
    if source.files != weights.source_hashes | work.small_hashes:
        raise InputError(f"{checkpoint.folder} changed while it was read; restore the checkpoint and build again")

    exporter = GraphExporter(
        checkpoint.config,
        work.spec,
        weights.tensors,
        folder / "onnx",
        work.dtype,
        weights_base=(earlier.folder if earlier else folder) / "onnx",
    )
    described = _export_plans(exporter, work)
    graphs = dict(exporter.graphs)
    known_hashes = {WEIGHTS_PREFIX + name: digest for name, digest in weights.written_hashes.items()}
    if earlier is not None:
        take_over(earlier, known_hashes, folder)
        kept, used = kept_plans(earlier.manifest, work.plans, graphs)
        known_hashes |= take_over(earlier, (graph.file for graph in used.values()), folder)
        described, graphs = kept + described, graphs | used
    report.stage(f"checking {len(exporter.graphs)} graphs")
    exporter.check(report.note)
    text = work.processing.with_embedding(describe_embedding(work.spec, weights.tensors, WEIGHTS_PREFIX))
    return _manifest(work, earlier, source, text, graphs, described, describe_files(folder, known_hashes))


def _write_in_place(writer: InPlace, work: _Work, earlier: Bundle | None) -> schema.Manifest:
    """Graphs beside the checkpoint's own weights, and the manifest for `writer` to publish."""
    from vtexport.export.graphs import GraphExporter

    folder, checkpoint, report = writer.folder, work.checkpoint, work.report
    if (folder / "engines").is_dir():
        report.note(f"the engines of {folder} are of its present graphs and go; run `vtexport compile` afterwards")
    total = sum(path.stat().st_size for path in checkpoint.weight_files)
    report.stage(f"reading {total / 1e6:,.1f} MB of weights for their hashes; they stay where they are")
    with report.bytes_done("weights", total) as progress:
        weights = weights_in_place(checkpoint.tensors, folder, progress)
    source = describe_source(checkpoint, weights.source_hashes)
    if earlier is not None:
        check_same_model(earlier, source, work.dtype)

    report.stage("writing tokenizer and chat template")
    texts = writer.unfinished("text")
    texts.mkdir()
    work.processing.files.write(texts)
    exporter = GraphExporter(checkpoint.config, work.spec, weights.tensors, folder, work.dtype, folder, UNFINISHED)
    described = _export_plans(exporter, work)
    report.stage(f"checking {len(exporter.graphs)} graphs")
    exporter.check(report.note)

    # From here on files get names that stay, none of which the present manifest has with other content.
    files = describe_own_files(folder, source)
    graphs = dict(exporter.graphs)
    for name, graph in graphs.items():
        graph.file, files[graph.file] = writer.settle(exporter.path(name), f"{name}.onnx")
    text = work.processing.with_embedding(describe_embedding(work.spec, weights.tensors, ""))
    for attribute, name in (("tokenizer", schema.TOKENIZER_NAME), ("chat_template", schema.TEMPLATE_NAME)):
        settled, file = writer.settle(texts / name, name, TEXT_FOLDER)
        setattr(text, attribute, settled)
        files[settled] = file
    if earlier is not None:
        kept, used = kept_plans(earlier.manifest, work.plans, graphs)
        files |= checked(earlier, (graph.file for graph in used.values()))
        described, graphs = kept + described, graphs | used
    manifest = _manifest(work, earlier, source, text, graphs, described, files)
    manifest.name = folder.name
    return manifest


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


def _manifest(
    work: _Work,
    earlier: Bundle | None,
    source: schema.Source,
    text: schema.Text,
    graphs: dict[str, schema.Graph],
    plans: list[schema.Plan],
    files: dict[str, schema.File],
) -> schema.Manifest:
    created_at = plans[-1].created_at
    added = [describe_adaptive_plan(work.adaptive, work.command, created_at)] if work.adaptive else []
    before = earlier.manifest.adaptive_plans if earlier else []
    kept = [old for old in before if old.name not in {new.name for new in added}]
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name="",
        created_at=created_at,
        command=work.command,
        versions=versions(),
        family=work.spec.family,
        precision=work.dtype,  # type: ignore[arg-type]
        source=source,
        vision=describe_vision(work.spec),
        image=work.processing.image,
        text=text,
        generation=work.processing.generation,
        self_check=work.processing.self_check,
        notes=work.notes,
        decoder=describe_decoder(work.spec),
        graphs=graphs,
        plans=plans,
        adaptive_plans=[*kept, *added],
        files=files,
    )


def _place_weights(folder: Path, work: _Work, earlier: Bundle | None) -> PlacedWeights:
    """The weights copied from the checkpoint, or those of the earlier bundle after a look that they are the same."""
    checkpoint, report = work.checkpoint, work.report
    target = folder / WEIGHTS_PREFIX
    target.mkdir(parents=True)
    total = sum(path.stat().st_size for path in checkpoint.weight_files)
    if earlier is None and work.link_weights:
        report.stage(f"linking {total / 1e6:,.1f} MB of weights, and reading them for their hashes")
        with report.bytes_done("weights", total) as progress:
            return reflink_weights(checkpoint.tensors, target, progress)
    if earlier is None:
        report.stage(f"copying {total / 1e6:,.1f} MB of weights")
        with report.bytes_done("weights", total) as progress:
            return copy_weights(checkpoint.tensors, target, work.dtype, progress)
    report.stage(f"adding to {earlier.folder}; comparing {total / 1e6:,.1f} MB of weights with those it was made of")
    with report.bytes_done("weights", total) as progress, named_if_it_vanishes():
        source_hashes = {path.name: hash_file(path, progress) for path in checkpoint.weight_files}
    check_same_model(earlier, describe_source(checkpoint, source_hashes), work.dtype)
    files = earlier.manifest.files.items()
    written_hashes = {
        name.removeprefix(WEIGHTS_PREFIX): f.sha256 for name, f in files if name.startswith(WEIGHTS_PREFIX)
    }
    return PlacedWeights(weights_of(earlier, WEIGHTS_PREFIX, checkpoint), source_hashes, written_hashes)


def _check_space(checkpoint: Checkpoint, destination: Path, dtype: str) -> None:
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    needed = planned_bytes(checkpoint.tensors, dtype)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{existing} has {free / 1e6:,.0f} MB free and the bundle takes {needed / 1e6:,.0f} MB; "
            "choose another -o/--output"
        )
