"""The prune graph: features and signals -> the whole block of visual embeddings that enters the prompt.

The pruning op is one node of the domain `vtexport` with its portable function body beside it (docs/ops.md); what it
keeps goes through the projector, so the projector only ever sees kept rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter, describe
from vtexport.graphs.weight import Weight
from vtexport.models.parts import ModelSpec
from vtexport.pruning.onnx_op import call_op, op_function, op_inputs, op_shape
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
    g = GraphWriter(weights, folder)
    rows = vision.cls_rows + vision.tokens
    with g.scope("prune"):
        first, *others = op.inputs()
        signals = op_inputs(g, op, others, sizes, FEATURES)
        features = given = g.input("features", [1, rows, vision.feature_width], FEATURES)
        if vision.cls_rows and not op.takes_cls:
            given = g.Slice(features, [vision.cls_rows], [rows], [1], name="patches")
        if projected_space:
            given = spec.connector.write(g, given, vision.tokens, dtype)
        if given is not features:
            describe(given, op_shape(op, first, sizes), FEATURES)
        function = op_function(op, sizes)
        kept = call_op(g, op, sizes, function, {first.name: given, **signals}, FEATURES)
        image_features = kept["kept_features"]
        if not projected_space:
            image_features = spec.connector.write(g, image_features, keep, dtype)
        image_features = g.cast(image_features, FEATURES, dtype)
        positions = _positions(g, placed.positions, kept["keep_indices"], keep)
    outputs: list[tuple[ir.Value, str, list[int | str], str]] = [
        (image_features, "image_features", [1, keep, width_out], dtype),
        (kept["keep_indices"], "keep_indices", [1, keep], "int64"),
        (positions, "visual_positions", [1, keep], "int64"),
        *((kept[each.name], each.name, sizes.shape(each.axes), each.dtype) for each in op.outputs()[2:]),
    ]
    return g.model("prune", [features, *signals.values()], outputs, PRUNE_OPSET, [function])


def _positions(g: GraphWriter, positions: str, keep_indices: ir.Value, keep: int) -> ir.Value:
    # Neither another name of an output nor a constant: optimisers take such outputs away.
    with g.scope("positions"):
        if positions == "original":
            return g.Add(keep_indices, np.zeros((1, 1), np.int64))
        return g.Add(g.Sub(keep_indices, keep_indices), np.arange(keep)[None])
