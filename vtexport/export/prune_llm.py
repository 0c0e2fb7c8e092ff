"""The graph of a pruning step inside the language model: it runs in prefill only, between two decoder segments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.export.prune import PRUNE_OPSET
from vtexport.graphs.builder import DTYPES, IR_VERSION, GraphWriter
from vtexport.graphs.weight import Weight
from vtexport.models.parts import Decoder
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import Sizes


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
    model = ir.from_proto(model_of_op(step.op, sizes, dtype=dtype))
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    hidden, rows = graph.outputs
    before, after = GraphWriter(weights, folder, "before_"), GraphWriter(weights, folder, "after_")
    after.initializers = before.initializers
    positions = before.input("position_ids", [1, "S"], "int64")
    if step.source == "behind":
        own = spec.keys_and_query(before, step.layer, inputs["hidden_states"], positions, dtype)
        for name, value in zip(("keys", "query"), own, strict=True):
            if name in inputs:
                value.name, value.shape, value.type = f"own_{name}", inputs[name].shape, inputs[name].type
                ir.convenience.replace_all_uses_with(inputs[name], value)
                graph.inputs.remove(inputs[name])
    if step.positions == "original":
        left = after.op("GatherElements", positions, rows, axis=1)
    elif step.positions == "official":
        left = after.op("Identity", rows)
    else:
        length = after.op("Squeeze", after.op("Shape", rows, start=1, end=2), after.constant(np.array([0])))
        through = after.op("Range", after.constant(np.int64(0)), length, after.constant(np.int64(1)))
        left = after.op("Unsqueeze", through, after.constant(np.array([0])))
    if step.positions == "original" or step.source == "behind":
        graph.inputs.append(positions)
    places = after.op("Add", inputs["visual_start"], after.constant(np.arange(step.keep)))
    kept = after.op("Sub", after.op("Gather", rows, places, axis=1), inputs["visual_start"])
    if before.nodes:
        graph.insert_before(graph[0], before.nodes)
    graph.extend(after.nodes)
    for value in before.initializers.values():
        graph.register_initializer(value)
    described: list[tuple[ir.Value, str, list[int | str], str]] = [
        (hidden, "hidden_states_out", [1, "R", spec.hidden_size], dtype),
        (left, "position_ids_out", [1, "R"], "int64"),
        (kept, "keep_indices", [1, step.keep], "int64"),
    ]
    for value, name, shape, kind in described:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(DTYPES[kind])
    graph.outputs[:] = [value for value, *_ in described]
    graph.name = "prune_llm"
    graph.opset_imports[""] = PRUNE_OPSET
    model.ir_version, model.producer_name = IR_VERSION, "vtexport"
    return model
