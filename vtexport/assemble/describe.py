"""Descriptions of a bundle's model, source and files for its manifest."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vtexport.assemble.weights import named_if_it_vanishes
from vtexport.bundle import manifest as schema
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.views import Arrangement, FixedSize, View, Vision
from vtexport.checkpoint.random_weights import copied_files
from vtexport.checkpoint.resolve import Checkpoint
from vtexport.export.plan import AdaptivePlanSpec, PlanSpec
from vtexport.graphs.weight import Weight
from vtexport.models.parts import ModelSpec
from vtexport.version import installed_versions

_LIBRARIES = ("transformers", "onnx", "onnx-ir", "onnxruntime", "numpy", "safetensors")


def describe_plan(plan: PlanSpec, graphs: schema.PlanGraphs, command: str, created_at: str) -> schema.Plan:
    """A plan with the graphs it runs."""
    return schema.Plan(
        name=plan.name,
        method=plan.method.name,
        parameters=dict(plan.schedule.settings),
        paper=f"arXiv {plan.method.arxiv}" if plan.method.arxiv else None,
        keep=plan.keep,
        visual_tokens=plan.visual_tokens,
        segments=list(plan.segments),
        steps=[
            schema.Step(
                layer=step.layer,
                tokens=step.tokens,
                keep=step.keep,
                op=step.op.op_type,
                positions=step.positions,  # type: ignore[arg-type]
            )
            for step in plan.steps
        ],
        positions=plan.first.positions,  # type: ignore[arg-type]
        reports=msgspec.convert(plan.reports, dict[str, list[schema.ReportLimit]], from_attributes=True),
        graphs=graphs,
        command=command,
        created_at=created_at,
    )


def describe_adaptive_plan(adaptive: AdaptivePlanSpec, command: str, created_at: str) -> schema.AdaptivePlan:
    """An adaptive plan over others."""
    return schema.AdaptivePlan(
        name=adaptive.name, plans=list(adaptive.plans), mean=adaptive.mean, command=command, created_at=created_at
    )


def describe_source(checkpoint: Checkpoint, weight_hashes: Mapping[str, str]) -> schema.Source:
    """The checkpoint, with the SHA-256 of everything the bundle follows from; `weight_hashes` by file name.

    Raises:
        InputError: a file vanishes while it is read.
    """
    files = {**weight_hashes, **hash_small_files(checkpoint.folder)}
    return schema.Source(**dataclasses.asdict(checkpoint.source), files=files)


def hash_small_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files that belong to a checkpoint beside its weights, by name.

    Raises:
        InputError: a file vanishes while it is read.
    """
    with named_if_it_vanishes():
        return {path.name: hash_file(path) for path in copied_files(folder)}


def describe_files(folder: Path, known: Mapping[str, str]) -> dict[str, schema.File]:
    """Size and hash of every file below `folder`; hashes already `known`, by relative name, are not taken again."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            files[relative] = schema.File(bytes=path.stat().st_size, sha256=known.get(relative) or hash_file(path))
    return files


def describe_own_files(folder: Path, source: schema.Source) -> dict[str, schema.File]:
    """Size and hash of the checkpoint's files in its own `folder`, without small files that are links elsewhere."""
    paths = {name: folder / name for name in source.files}
    return {
        name: schema.File(bytes=path.stat().st_size, sha256=source.files[name])
        for name, path in paths.items()
        if path.resolve().is_relative_to(folder)
    }


def describe_vision(spec: ModelSpec) -> Vision:
    """The vision tower, and the one square view that an image becomes."""
    vision = spec.vision
    view = View(
        height=vision.image_size,
        width=vision.image_size,
        grid_height=vision.grid_height,
        grid_width=vision.grid_width,
        rows=vision.grid_height,
        columns=vision.grid_width,
    )
    return Vision(
        hidden_size=vision.hidden_size,
        patch_size=vision.patch_size,
        cls_rows=vision.cls_rows,
        arrangements=[Arrangement(name=f"{view.height}x{view.width}", views=[view])],
        resize=FixedSize(),
    )


def describe_weights(spec: ModelSpec, weights: Mapping[str, Weight]) -> dict[schema.Part, list[schema.StoredWeights]]:
    """Number and bytes of the tensors of every part, by the type that they are stored in."""
    groups: dict[schema.Part, dict[str, list[int]]] = {}
    for name, weight in weights.items():
        groups.setdefault(spec.part(name), {}).setdefault(weight.dtype, []).append(weight.nbytes)
    return {
        part: [
            schema.StoredWeights(dtype=dtype, tensors=len(sizes), bytes=sum(sizes))  # type: ignore[arg-type]
            for dtype, sizes in sorted(by_type.items())
        ]
        for part, by_type in sorted(groups.items())
    }


def describe_embedding(spec: ModelSpec, weights: Mapping[str, Weight], weights_prefix: str) -> schema.StoredTensor:
    """The place of the token embedding."""
    table = weights[spec.decoder.embedding]
    return schema.StoredTensor(
        file=weights_prefix + table.file,
        offset=table.offset,
        shape=list(table.shape),
        dtype=table.dtype,  # type: ignore[arg-type]
    )


def describe_decoder(spec: ModelSpec) -> schema.Decoder:
    """The language model's sizes."""
    return msgspec.convert(spec.decoder, schema.Decoder, from_attributes=True)


def time_now() -> str:
    """The time in UTC, or SOURCE_DATE_EPOCH (reproducible-builds.org) where it is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.timezone.utc)
    if epoch is not None and epoch.isdigit():
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Of vtexport, Python and the libraries that wrote the bundle."""
    return installed_versions(_LIBRARIES)
