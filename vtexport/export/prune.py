"""The prune graph: features and signals -> the whole block of visual embeddings that enters the prompt.

The pruning op is one node of the domain `vtexport` with its portable function body beside it (docs/ops.md); what it
keeps goes through the projector, so the projector only ever sees kept rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vtexport.errors import UsageError
from vtexport.export.graph import DTYPES, IR_VERSION, GraphWriter
from vtexport.export.half import wide_gemm
from vtexport.export.weights import Weight
from vtexport.models.spec import ModelSpec
from vtexport.pruning import Method, op_model

# The graph needs nothing newer (Gelu is since 20), so one file serves every dialect.
PRUNE_OPSET = 20
# Of the vision tower's output, also where its weights are float16: its residual stream is wider than that.
FEATURES = "float32"


def prune_graph(
    method: Method,
    parameters: Mapping[str, Any],
    keep: int,
    spec: ModelSpec,
    weights: Mapping[str, Weight],
    folder: Path,
    dtype: str,
) -> ir.Model:
    """The graph of one plan, batch 1.

    Inputs: `features` [1, cls + T, D] float32 and, where the method asks for it, `scores` [1, T] float32. Outputs:
    `image_features` [1, N, W] in `dtype`, `keep_indices` [1, N] int64 (raster index of the patch, -1 for CLS) and
    `visual_positions` [1, N] int64, counted from the image's place in the prompt.

    Raises:
        UsageError: the method needs a CLS token that the vision tower does not have.
    """
    vision = spec.vision
    resolved = method.resolve(method.parameters(**parameters), tokens=vision.tokens, keep=keep)[1]
    takes_cls = method.takes_cls(resolved)
    if takes_cls and not vision.cls_rows:
        raise UsageError(f"{method.name} keeps a CLS token and this vision tower has none; set its cls_slot to false")
    model = ir.from_proto(
        op_model(method.name, tokens=vision.tokens, width=vision.width, keep=keep, dtype=FEATURES, **parameters)
    )
    graph = model.graph
    kept, keep_indices = graph.outputs
    features = graph.inputs[0]
    before, after = GraphWriter(weights, folder), GraphWriter(weights, folder)
    rows = vision.cls_rows + vision.tokens
    if vision.cls_rows and not takes_cls:
        whole = before.input("features", [1, rows, vision.width], FEATURES)
        cut = before.op(
            "Slice",
            whole,
            *(before.constant(np.array([value])) for value in (vision.cls_rows, rows, 1)),
            outputs=["patches"],
        )
        cut.shape, cut.type = features.shape, features.type
        ir.convenience.replace_all_uses_with(features, cut)
        graph.inputs[0] = whole
    projected = _projector(after, spec, kept, keep, dtype)
    positions = _positions(after, method.positions, keep_indices, keep)
    for writer, insert in ((before, lambda nodes: graph.insert_before(graph[0], nodes)), (after, graph.extend)):
        if writer.nodes:
            insert(writer.nodes)
        for value in writer.initializers.values():
            graph.register_initializer(value)
    described = [
        (projected, "image_features", [1, keep, spec.projector.width_out], dtype),
        (keep_indices, "keep_indices", [1, keep], "int64"),
        (positions, "visual_positions", [1, keep], "int64"),
    ]
    for value, name, shape, kind in described:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(DTYPES[kind])
    graph.outputs[:] = [value for value, *_ in described]
    graph.name = "prune"
    graph.opset_imports[""] = PRUNE_OPSET
    model.ir_version, model.producer_name = IR_VERSION, "vtexport"
    return model


def _projector(g: GraphWriter, spec: ModelSpec, kept: ir.Value, keep: int, dtype: str) -> ir.Value:
    projector = spec.projector
    x = g.op("Reshape", kept, g.constant(np.array([keep, projector.width_in])))
    x = _linear(g, x, projector.first, dtype)
    x = g.op("Gelu", x, approximate="tanh" if projector.activation == "gelu_tanh" else "none")
    x = _linear(g, x, projector.second, dtype)
    if dtype != FEATURES:
        x = g.op("Cast", x, to=DTYPES[dtype].value)
    return g.op("Reshape", x, g.constant(np.array([1, keep, projector.width_out])))


def _linear(g: GraphWriter, x: ir.Value, names: tuple[str, str | None], dtype: str) -> ir.Value:
    """Float32 in and out; `dtype` is that of the weights."""
    if dtype != FEATURES:
        return wide_gemm(g, x, g.weight(names[0]), g.weight(names[1]) if names[1] else None, dtype)
    return g.op("Gemm", x, *(g.weight(name) for name in names if name), transB=1)


def _positions(g: GraphWriter, positions: str, keep_indices: ir.Value, keep: int) -> ir.Value:
    if positions == "original":
        return g.op("Identity", keep_indices)
    return g.op("Constant", value=ir.tensor(np.arange(keep, dtype=np.int64)[None]))
