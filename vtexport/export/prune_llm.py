"""The graph of a pruning step inside the language model: it runs in prefill only, between two decoder segments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.export.prune import PRUNE_OPSET
from vtexport.graphs.builder import GraphWriter, describe
from vtexport.graphs.weight import Weight
from vtexport.models.parts import Decoder
from vtexport.pruning.onnx_op import call_op, op_function, op_inputs, op_shape, own_dtype
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import Sizes

_OF_A_LAYER = "keys", "query"  # inputs of ops


def prune_llm_graph(step: PlacedOp, spec: Decoder, weights: Mapping[str, Weight], folder: Path, dtype: str) -> ir.Model:
    """The step's op with what it reads and the position ids behind it; opset 20, for every dialect.

    Inputs: `hidden_states` [1, S, W], `visual_start` [1] int64, the row of the first visual token, and as far as the op
    needs them `position_ids` [1, S] int64, `keys` [1, S, kv_heads, D] and `query` [1, heads, D] of the layer before,
    `labels` [1, n] int64. Outputs: `hidden_states_out` [1, R, W] with R = S - n + n', `position_ids_out` [1, R] int64
    and `keep_indices` [1, n'] int64, which of the n visual tokens the kept rows stand for.
    """
    sizes = Sizes(
        batch=1,
        grid=(1, step.tokens),
        width=spec.hidden_size,
        keep=step.keep,
        heads=spec.num_attention_heads,
        kv_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
    )
    op, g = step.op, GraphWriter(weights, folder)
    with g.scope("prune_llm"):
        computed = {each.name: each for each in op.inputs() if step.source == "behind" and each.name in _OF_A_LAYER}
        inputs = op_inputs(g, op, (each for each in op.inputs() if each.name not in computed), sizes, dtype)
        positions = g.input("position_ids", [1, "S"], "int64")
        own: dict[str, ir.Value] = {}
        if step.source == "behind":
            made = spec.keys_and_query(g, step.layer, inputs["hidden_states"], positions, dtype)
            own = dict(zip(_OF_A_LAYER, made, strict=True))
            for name, each in computed.items():
                describe(own[name], op_shape(op, each, sizes), own_dtype(each, dtype))
        function = op_function(op, sizes)
        left = call_op(g, op, sizes, function, inputs | own, dtype)
        rows = left["rows"]
        places = g.Add(inputs["visual_start"], np.arange(step.keep))
        kept = g.Sub(g.Gather(rows, places, axis=1), inputs["visual_start"])
        new_positions = _positions(g, step.positions, rows, positions)
    if step.positions == "original" or step.source == "behind":
        inputs["position_ids"] = positions
    outputs: list[tuple[ir.Value, str, list[int | str], str]] = [
        (left["hidden_states_out"], "hidden_states_out", [1, "R", spec.hidden_size], dtype),
        (new_positions, "position_ids_out", [1, "R"], "int64"),
        (kept, "keep_indices", [1, step.keep], "int64"),
    ]
    return g.model("prune_llm", list(inputs.values()), outputs, PRUNE_OPSET, [function])


def _positions(g: GraphWriter, positions: str, rows: ir.Value, before: ir.Value) -> ir.Value:
    """[1, R] int64: position ids behind the step, from the rows that are left [1, R] and those before it [1, S]."""
    with g.scope("positions"):
        if positions == "original":
            return g.GatherElements(before, rows, axis=1)
        if positions == "official":
            return g.Identity(rows)
        length = g.Squeeze(g.Shape(rows, start=1, end=2), [0])
        return g.Unsqueeze(g.Range(0, length, 1), [0])
