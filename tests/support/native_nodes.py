"""Calls of the native ops (`native_ops.calls.Call`) as ONNX nodes, which is what a runtime's plugin is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from native_ops.calls import Call
from onnx import TensorProto, helper

from vtexport.pruning.onnx_op import DOMAIN, IR_VERSION, OPSET

# Fields of the C structures whose numbers are words on a node, and such as have another name there.
_WORDS: dict[str, dict[str, Mapping[int, str]]] = {
    "VtxPruneSID": {
        "center": {0: "token", 1: "feature"},
        "nms_score": {0: "cls_attention", 1: "abs_v"},
        "order": {0: "group", 1: "raster"},
        "redundancy": {0: "pairs", 1: "triangle"},
        "shares": {0: "bounded", 1: "proportional"},
    },
    "VtxSVDPrune": {"center": {2: "none", 1: "feature-mean"}, "mode": {0: "budget", 1: "leverage"}},
    "VtxViTCoP": {"clustering": {0: "official", 1: "fixed"}, "counts_itself": {1: "official", 0: "paper"}},
    "VtxNuwa": {"paper": {0: "official", 1: "paper"}},
    "VtxCDPruner": {"relevance_of": {0: "llm", 1: "clip", 2: "none"}},
    "VtxClusterMerge": {"mean": {0: "sum", 1: "mean"}},
}
_RENAMED = {"counts_itself": "variant", "paper": "variant", "relevance_of": "relevance", "mean": "merge"}
_NEED_GRID = ("VtxViTCoP", "VtxNuwa")
# Outputs that nodes have: those that are there in every setting, and those that some settings add. Other outputs of the
# C structures are intermediate values.
_OUTPUTS = ("kept_features", "keep_indices", "merged", "labels", "rank", "energy", "count", "leverage")
_STEP_OUTPUTS = {"hidden_states_out": "hidden_states_out", "out_rows": "rows"}
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.BOOL,
}
_OF_FEATURE_TYPE = ("features", "kept_features", "hidden_states", "keys", "query", "hidden_states_out")


def node_attributes(call: Call) -> dict[str, Any]:
    """Attributes of the node of a call, but for what means nothing to a native form."""
    words = _WORDS.get(call.op_type, {})
    own: dict[str, Any] = {}
    for name, *_ in call.parameters._fields_ if call.parameters is not None else ():
        value = getattr(call.parameters, name)
        own[_RENAMED.get(name, name)] = words[name][value] if name in words else value
    if call.is_step:
        own["visual_count"] = call.sizes.visual_count
    elif call.op_type in _NEED_GRID:
        own |= {"grid_rows": call.sizes.grid_rows, "grid_columns": call.sizes.grid_columns}
    return {"plugin_namespace": "vtexport", "plugin_version": "1", "keep": call.sizes.keep, **own}


def node_outputs(call: Call) -> dict[str, str]:
    """Names of the node's outputs, by the names in the C structures."""
    if call.is_step:
        return dict(_STEP_OUTPUTS)
    return {name: name for name in _OUTPUTS if name in call.outputs}


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
    is_feature = name in _OF_FEATURE_TYPE and (call.is_step or name != "keys")
    return _TYPES[call.dtype if is_feature else np.dtype(kind).name]
