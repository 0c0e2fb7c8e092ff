"""The prune graph: features and signals -> the whole block of visual embeddings that enters the prompt.

The pruning op is one node of the domain `vtexport` with its portable function body beside it (docs/ops.md); what it
keeps goes through the projector, so the projector only ever sees kept rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import DTYPES, IR_VERSION, GraphWriter
from vtexport.graphs.weight import Weight
from vtexport.models.parts import ModelSpec
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_CONNECTOR, Sizes

# The graph needs nothing newer (Gelu is since 20), so one file serves every dialect.
PRUNE_OPSET = 20
# Of the vision tower's output, also where its weights are float16: its residual stream is wider than that.
FEATURES = "float32"


def prune_graph(placed: PlacedOp, spec: ModelSpec, weights: Mapping[str, Weight], folder: Path, dtype: str) -> ir.Model:
    """The graph of the op before the language model, batch 1.

    Inputs: `features` [1, cls + T, D] float32 and the signals that the op reads (`vtexport.pruning.signals`).
    Outputs: `image_features` [1, N, W] in `dtype`, `keep_indices` [1, N] int64 (raster index of the patch, -1 for CLS),
    `visual_positions` [1, N] int64, counted from the image's place in the prompt; then the op's own outputs beyond
    these: `merged` [1, N] bool where the op merges, `Op.reports` [1] each and `Op.further_outputs`.
    """
    vision, width_out, op, keep = spec.vision, spec.connector.out_features, placed.op, placed.keep
    projected_space = placed.place == AFTER_CONNECTOR
    sizes = Sizes(
        batch=1,
        grid=(vision.grid_height, vision.grid_width),
        width=width_out if projected_space else vision.feature_width,
        keep=keep,
        heads=vision.num_attention_heads,
        head_dim=vision.head_dim,
        embedding_width=width_out,
    )
    model = ir.from_proto(model_of_op(op, sizes, dtype=FEATURES))
    graph = model.graph
    kept, keep_indices, *others = graph.outputs
    features = graph.inputs[0]
    before, after = GraphWriter(weights, folder, "before_"), GraphWriter(weights, folder, "after_")
    after.initializers = before.initializers
    rows = vision.cls_rows + vision.tokens
    whole = before.input("features", [1, rows, vision.feature_width], FEATURES)
    given = whole
    if vision.cls_rows and not op.takes_cls:
        given = before.op("Slice", whole, *(before.constant(np.array([value])) for value in (vision.cls_rows, rows, 1)))
    if projected_space:
        given = spec.connector.write(before, given, vision.tokens, dtype)
    if given is not whole:
        given.name, given.shape, given.type = "op_features", features.shape, features.type
        ir.convenience.replace_all_uses_with(features, given)
        graph.inputs[0] = whole
    image_features = kept if projected_space else spec.connector.write(after, kept, keep, dtype)
    if dtype != FEATURES:
        image_features = after.op("Cast", image_features, to=DTYPES[dtype].value)
    positions = _positions(after, placed.positions, keep_indices, keep)
    for writer, insert in ((before, lambda nodes: graph.insert_before(graph[0], nodes)), (after, graph.extend)):
        if writer.nodes:
            insert(writer.nodes)
    for value in before.initializers.values():
        graph.register_initializer(value)
    described = [
        (image_features, "image_features", [1, keep, width_out], dtype),
        (keep_indices, "keep_indices", [1, keep], "int64"),
        (positions, "visual_positions", [1, keep], "int64"),
    ]
    for value, name, shape, kind in described:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(DTYPES[kind])
    graph.outputs[:] = [*(value for value, *_ in described), *others]
    graph.name = "prune"
    graph.opset_imports[""] = PRUNE_OPSET
    model.ir_version, model.producer_name = IR_VERSION, "vtexport"
    return model


def _positions(g: GraphWriter, positions: str, keep_indices: ir.Value, keep: int) -> ir.Value:
    # Neither another name of an output nor a constant: optimisers take such outputs away.
    if positions == "original":
        return g.op("Add", keep_indices, g.constant(np.zeros((1, 1), np.int64)))
    zero = g.op("Sub", keep_indices, keep_indices)
    return g.op("Add", zero, g.constant(np.arange(keep, dtype=np.int64)[None]))
