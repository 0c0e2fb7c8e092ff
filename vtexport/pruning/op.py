"""One-node ONNX models of the pruning ops, each with its model-local function (the op's portable form)."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnx import FunctionProto, ModelProto, TensorProto, helper

from vtexport.errors import UsageError
from vtexport.pruning.emit import INT64, Emitter, live_nodes
from vtexport.pruning.method import MOST_TOKENS, Method, Sizes

DOMAIN = "vtexport"
OPSET = 20  # of the function bodies, the lower of the two dialects
IR_VERSION = 10
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
OUTPUTS = ("kept_features", "keep_indices")


def build(
    method: Method,
    parameters: Any,
    *,
    tokens: int,
    width: int,
    keep: int | None,
    batch: int,
    dtype: str,
    diagnostics: bool,
) -> ModelProto:
    """The model behind `vtexport.pruning.op_model` and `diagnostic_model`."""
    for name, value in (("tokens", tokens), ("width", width), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value!r} is not allowed; give a whole number from 1")
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"tokens={tokens} is not allowed; one op takes at most {MOST_TOKENS} tokens, so split the image"
        )
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r} is not allowed; give {', '.join(DTYPES)}")
    keep, parameters = method.resolve(parameters, tokens=tokens, keep=keep)
    sizes = Sizes(batch=batch, tokens=tokens, width=width, keep=keep)

    outputs = [*OUTPUTS, *(method.diagnostics if diagnostics else ())]
    function = _function(method, parameters, sizes, outputs)
    node = helper.make_node(
        method.op_type, list(function.input), outputs, domain=DOMAIN, **_attributes(parameters, sizes.keep)
    )
    rows = tokens + int(method.takes_cls(parameters))
    describe = helper.make_tensor_value_info
    inputs = {"features": describe("features", DTYPES[dtype], [batch, rows, width])}
    inputs["scores"] = describe("scores", TensorProto.FLOAT, [batch, tokens])
    results = [
        describe("kept_features", DTYPES[dtype], [batch, keep, width]),
        describe("keep_indices", INT64, [batch, keep]),
        *(describe(name, *_diagnostic_type(method, name)) for name in outputs[len(OUTPUTS) :]),
    ]
    graph = helper.make_graph([node], f"{method.name}_keep{keep}", [inputs[name] for name in function.input], results)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[function], producer_name="vtexport"
    )


def _diagnostic_type(method: Method, name: str) -> tuple[int, list[str]]:
    kind, axes = method.diagnostics[name]
    return TensorProto.DataType.Value(kind), list(axes)


def _attributes(parameters: Any, keep: int) -> dict[str, Any]:
    """The node's attributes: how TensorRT finds the plugin, the budget and every parameter, none left to a default."""
    own = {
        name: int(value) if isinstance(value, bool) else value for name, value in dataclasses.asdict(parameters).items()
    }
    return {"plugin_namespace": "vtexport", "plugin_version": "1", "keep": keep, **own}


def _function(method: Method, parameters: Any, sizes: Sizes, outputs: list[str]) -> FunctionProto:
    """The op's body. It is built for its attributes' values and sizes; it declares the attributes but reads none.

    TensorRT wants a call to use every output a function declares, so it declares just `outputs`.
    """
    emitter = Emitter()
    values = method.emit(emitter, sizes=sizes, parameters=parameters)
    for name in outputs:
        emitter.nodes.append(helper.make_node("Identity", [values[name]], [name]))
    return helper.make_function(
        DOMAIN,
        method.op_type,
        ["features", *(["scores"] if method.signals(parameters) else [])],
        outputs,
        live_nodes(emitter.nodes, outputs),
        [helper.make_opsetid("", OPSET)],
        attributes=list(_attributes(parameters, sizes.keep)),
    )
