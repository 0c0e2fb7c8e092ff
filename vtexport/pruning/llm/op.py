"""One-node ONNX models of the ops inside the language model, and the call of one from another graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnx import FunctionProto, ModelProto, TensorProto, helper

from vtexport.pruning.emit import INT64, Emitter, live_nodes
from vtexport.pruning.llm.step import LLMOp, LLMSizes
from vtexport.pruning.op import DOMAIN, DTYPES, IR_VERSION, OPSET

OUTPUTS = ("hidden_states_out", "rows")


def attributes(parameters: Any, sizes: LLMSizes) -> dict[str, Any]:
    """The node's attributes: how TensorRT finds the plugin, the visual tokens before and after, the op's parameters."""
    own = {} if parameters is None else dataclasses.asdict(parameters)
    own = {name: int(value) if isinstance(value, bool) else value for name, value in own.items()}
    return {
        "plugin_namespace": "vtexport",
        "plugin_version": "1",
        "visual_count": sizes.tokens,
        "keep": sizes.keep,
        **own,
    }


def function(op: LLMOp, parameters: Any, sizes: LLMSizes) -> FunctionProto:
    """The op's body, built for these sizes; it declares the attributes and reads none."""
    e = Emitter()
    values = op.emit(e, sizes=sizes, parameters=parameters)
    named = [helper.make_node("Identity", [values[name]], [name], name=name) for name in OUTPUTS]
    return helper.make_function(
        DOMAIN,
        op.op_type,
        ["hidden_states", "visual_start", *op.signals],
        list(OUTPUTS),
        live_nodes([*e.nodes, *named], OUTPUTS),
        [helper.make_opsetid("", OPSET)],
        attributes=list(attributes(parameters, sizes)),
    )


def llm_op_model(op: LLMOp, parameters: Any, sizes: LLMSizes, *, dtype: str = "float32") -> ModelProto:
    """A one-node model: hidden_states [1, S, W], visual_start [1] and signals in; hidden_states_out and rows out."""
    body = function(op, parameters, sizes)
    own = attributes(parameters, sizes)
    node = helper.make_node(op.op_type, list(body.input), list(OUTPUTS), name=op.op_type, domain=DOMAIN, **own)
    shapes: Mapping[str, tuple[int, list[Any]]] = {
        "hidden_states": (DTYPES[dtype], [1, "S", sizes.width]),
        "visual_start": (INT64, [1]),
        "keys": (DTYPES[dtype], [1, "S", sizes.kv_heads, sizes.head_dim]),
        "query": (DTYPES[dtype], [1, sizes.heads, sizes.head_dim]),
        "labels": (INT64, [1, sizes.tokens]),
    }
    describe: Any = helper.make_tensor_value_info
    results = {"hidden_states_out": (DTYPES[dtype], [1, "R", sizes.width]), "rows": (TensorProto.INT64, [1, "R"])}
    graph = helper.make_graph(
        [node],
        op.op_type,
        [describe(name, *shapes[name]) for name in body.input],
        [describe(name, *shape) for name, shape in results.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[body])
