"""Graphs as files, and their interfaces as the manifest lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from vtexport.graphs.builder import NAMES


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a protocol buffer.

    Initializers say their own type and shape. onnx_ir describes them a second time among the graph's values, which
    breaks tools that put other tensors in their places and do not look there, such as ONNX Runtime's quantisers.
    """
    proto = ir.to_proto(model)
    stored = {initializer.name for initializer in proto.graph.initializer}
    described = [value for value in proto.graph.value_info if value.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    return proto


def save(model: ir.Model, path: Path) -> None:
    """Writes a graph file, its weights as references to their files."""
    onnx.save(to_proto(model), path)


def interface(values: Sequence[ir.Value]) -> list[tuple[str, list[int | str], str]]:
    """(name, shape, dtype) of a model's inputs or outputs, as the manifest lists them."""
    described = []
    for value in values:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
        described.append((value.name, shape, NAMES[value.dtype]))
    return described
