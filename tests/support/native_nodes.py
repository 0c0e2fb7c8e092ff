"""Calls of the native ops (`native_ops.calls.Call`) as ONNX nodes, which is what a runtime's plugin is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from native_ops.calls import Call
from onnx import TensorProto, helper

from vtexport.graphs.builder import IR_VERSION
from vtexport.plugins.op_structures import OPS
from vtexport.pruning.onnx_op import DOMAIN, OPSET

_COUNTS = ("keep", "visual_count", "grid_rows", "grid_columns")
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.BOOL,
}


def node_attributes(call: Call) -> dict[str, Any]:
    """Attributes that the node of a call carries, but for what means nothing to a native form."""
    op = OPS[call.op_type]
    known = {"plugin_namespace": "vtexport", "plugin_version": "1"}
    known |= {each: getattr(call.sizes, each) for each in _COUNTS if hasattr(call.sizes, each)}
    found = {}
    for each in op.attributes:
        if each.member is not None:
            found[each.name] = each.value_of(getattr(call.parameters, each.member))
        elif each.name in known:
            found[each.name] = known[each.name]
    return found


def node_outputs(call: Call) -> dict[str, str]:
    """Names of the node's outputs, by the names in the C structures."""
    op = OPS[call.op_type]
    return {each.member: each.name for each in op.outputs if op.is_there(each, call.parameters)}


def node_inputs(call: Call) -> dict[str, np.ndarray]:
    """The arrays as the node takes them: batch 1 is an axis there. bfloat16 is held by its bits."""
    if not call.is_step:
        return dict(call.inputs)
    return {name: value if name == "visual_start" else value[None] for name, value in call.inputs.items()}


def node_model(call: Call, *, rows: str | None = None) -> onnx.ModelProto:
    """A model of one node without a function, which only a runtime with a native form can run.

    `rows` names the axis of the prompt's rows, for ops inside the language model; without it every length is fixed.
    """
    is_fixed = rows is None or not call.is_step
    inputs = []
    for name, value in node_inputs(call).items():
        shape: list[Any] = list(value.shape)
        if not is_fixed and name in ("hidden_states", "keys"):
            shape[1] = rows
        inputs.append(helper.make_tensor_value_info(name, _type(call, name, value.dtype), shape))
    outputs = []
    for own, name in node_outputs(call).items():
        shape, kind = call.outputs[own]
        fixed = [1, *shape] if call.is_step else list(shape)
        if not is_fixed:
            fixed[1] = f"{rows}_left"
        outputs.append(helper.make_tensor_value_info(name, _type(call, own, kind), fixed))
    node = helper.make_node(
        call.op_type,
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain=DOMAIN,
        **node_attributes(call),
    )
    graph = helper.make_graph([node], call.op_type, inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _type(call: Call, name: str, kind: Any) -> int:
    op = OPS[call.op_type]
    is_feature = any(each.member == name and each.element == "features" for each in (*op.inputs, *op.outputs))
    return _TYPES[call.dtype if is_feature else np.dtype(kind).name]
