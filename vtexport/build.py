"""The build, from a checkpoint to a published bundle, as a recipe to read from top to bottom."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vtexport
from vtexport.bundle import manifest as schema
from vtexport.bundle.publish import check_destination, staged
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.resolve import Checkpoint, Weights, open_checkpoint
from vtexport.errors import InputError, UsageError
from vtexport.export.plan import Plan, check_method, make_plans
from vtexport.models.spec import ImageSpec, ModelSpec

PRECISIONS = {"fp32": "float32"}
_SOURCE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
)
_LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "safetensors")


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
    precision: str = "fp32",
    weights: Weights = "stored",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    report: Report | None = None,
    command: str = "",
) -> Bundle:
    """Exports a checkpoint with one plan for each budget and puts the bundle in place whole.

    Args:
        model: an alias, a hub id (`owner/name[@revision]`) or a checkpoint's folder.
        output: the bundle's folder; `./NAME` of the model when left out. A bundle that stands there is replaced.
        method: a pruning method (`vtexport list methods`).
        keep: visual tokens per image that enter the language model; several make several plans.
        options: the method's own parameters by name.
        precision: "fp32".
        weights: "stored", or "random" for the model's true shapes with seeded random values.
        seed: for random weights.
        cache_dir: where random checkpoints are kept.
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
    if output is not None:
        check_destination(Path(output))

    report.stage(f"reading the checkpoint {model}")
    checkpoint = open_checkpoint(
        model, weights=weights, seed=seed, cache_dir=Path(cache_dir) if cache_dir else None, notify=report.note
    )
    spec: ModelSpec = checkpoint.family.model_spec(checkpoint.config, checkpoint.folder)
    image = checkpoint.family.image_spec(checkpoint.folder, spec.vision)
    budgets = [keep] if isinstance(keep, int) else keep
    plans = make_plans(method, budgets, options or {}, spec)
    destination = Path(output) if output is not None else Path(bundle_name(checkpoint))
    check_destination(destination)
    _check_space(checkpoint, destination, dtype)

    with staged(destination) as folder:
        manifest = _write_bundle(folder, checkpoint, spec, image, plans, dtype, report, command)
        manifest.name = destination.name
        (folder / schema.MANIFEST_NAME).write_bytes(schema.encode(manifest))
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
    dtype: str,
    report: Report,
    command: str,
) -> schema.Manifest:
    # Heavy imports wait until the arguments are known to be right.
    from vtexport.export import graphs
    from vtexport.export.text import write_text_files
    from vtexport.export.weights import copy_weights

    onnx_folder = folder / "onnx"
    weights_folder = onnx_folder / graphs.WEIGHTS_FOLDER
    weights_folder.mkdir(parents=True)
    total = sum(path.stat().st_size for path in checkpoint.weight_files)
    report.stage(f"copying {total / 1e6:,.1f} MB of weights")
    with report.bytes_done("weights", total) as progress:
        copied = copy_weights(checkpoint.tensors, weights_folder, dtype, progress)

    report.stage("writing tokenizer and chat template")
    image_token, bos_token = write_text_files(
        checkpoint.folder, folder, spec.image_token_id, checkpoint.family.CHAT_TEMPLATE, report.note
    )

    exporter = graphs.GraphExporter(checkpoint.config, spec, copied.tensors, onnx_folder, dtype)
    described = []
    for plan in plans:
        report.stage(f"exporting {plan.name}: {spec.vision.tokens} -> {plan.keep} visual tokens")
        described.append(_plan(plan, exporter.plan(plan)))
    report.stage(f"checking {len(exporter.graphs)} graphs")
    exporter.check(report.note)

    weights_prefix = f"onnx/{graphs.WEIGHTS_FOLDER}/"
    written_hashes = {weights_prefix + name: digest for name, digest in copied.written_hashes.items()}
    table = copied.tensors[spec.decoder.embedding]
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name="",
        created_at=_now(),
        command=command,
        versions=_versions(),
        family=spec.family,
        precision=dtype,  # type: ignore[arg-type]
        source=_source(checkpoint, copied.source_hashes),
        vision=schema.Vision(
            image_size=spec.vision.image_size,
            patch_size=spec.vision.patch_size,
            grid_height=spec.vision.grid_height,
            grid_width=spec.vision.grid_width,
            tokens=spec.vision.tokens,
            width=spec.vision.width,
        ),
        image=schema.Image(
            resize_shortest=image.resize_shortest,
            crop_height=image.crop_height,
            crop_width=image.crop_width,
            resample=image.resample,  # type: ignore[arg-type]
            rescale=image.rescale,
            mean=list(image.mean),
            std=list(image.std),
        ),
        text=schema.Text(
            image_token=image_token,
            image_token_id=spec.image_token_id,
            bos_token=bos_token,
            eos_token_ids=list(spec.eos_token_ids),
            embedding=schema.StoredTensor(
                file=weights_prefix + table.file,
                offset=table.offset,
                shape=list(table.shape),
                dtype=table.dtype,  # type: ignore[arg-type]
            ),
        ),
        decoder=schema.Decoder(
            layers=spec.decoder.layers,
            width=spec.decoder.width,
            heads=spec.decoder.heads,
            kv_heads=spec.decoder.kv_heads,
            head_dim=spec.decoder.head_dim,
            vocabulary=spec.decoder.vocabulary,
            max_positions=spec.decoder.max_positions,
            segments=[schema.Segment(first_layer=0, layers=spec.decoder.layers)],
        ),
        graphs=exporter.graphs,
        plans=described,
        files=_files(folder, written_hashes),
    )


def _plan(plan: Plan, graphs: dict[str, schema.PlanGraphs]) -> schema.Plan:
    return schema.Plan(
        name=plan.name,
        method=plan.method.name,
        parameters=plan.parameters,
        paper=f"arXiv {plan.method.arxiv}" if plan.method.arxiv else None,
        keep=plan.keep,
        visual_tokens=plan.keep,
        positions=plan.method.positions,  # type: ignore[arg-type]
        position_span=plan.position_span,
        graphs=graphs,
    )


def _source(checkpoint: Checkpoint, weight_hashes: Mapping[str, str]) -> schema.Source:
    source = checkpoint.source
    small = {name: checkpoint.folder / name for name in _SOURCE_FILES if (checkpoint.folder / name).is_file()}
    return schema.Source(
        requested=source.requested,
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        weights=source.weights,
        seed=source.seed,
        files={**weight_hashes, **{name: _sha256(path) for name, path in small.items()}},
    )


def _files(folder: Path, known: Mapping[str, str]) -> dict[str, schema.File]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            files[relative] = schema.File(bytes=path.stat().st_size, sha256=known.get(relative) or _sha256(path))
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(4 * 2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_space(checkpoint: Checkpoint, destination: Path, dtype: str) -> None:
    from vtexport.export.weights import planned_bytes

    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    needed = planned_bytes(checkpoint.tensors, dtype)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{existing} has {free / 1e6:,.0f} MB free and the bundle takes {needed / 1e6:,.0f} MB; "
            "choose another -o/--output"
        )


def _now() -> str:
    """The time in UTC, or SOURCE_DATE_EPOCH (reproducible-builds.org) where it is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.timezone.utc)
    if epoch is not None and epoch.isdigit():
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    versions = {"vtexport": vtexport.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
