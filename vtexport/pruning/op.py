"""One-node ONNX models of the pruning ops, each with its model-local function (the op's portable form)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnx import FunctionProto, ModelProto, TensorProto, helper

from vtexport.errors import UsageError
from vtexport.pruning.emit import BOOL, INT64, Emitter, live_nodes
from vtexport.pruning.method import MOST_TOKENS, Method, Sizes, as_grid
from vtexport.pruning.signals import SIGNALS

DOMAIN = "vtexport"
OPSET = 20  # of the function bodies, the lower of the two dialects
IR_VERSION = 10
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def build(
    method: Method, parameters: Any, sizes: Mapping[str, Any], *, keep: int | None, dtype: str, diagnostics: bool
) -> ModelProto:
    """The model behind `vtexport.pruning.op_model` and `diagnostic_model`; `sizes` are those of `op_model`."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r} is not allowed; give {', '.join(DTYPES)}")
    given = dict(sizes)
    tokens, grid = given.pop("tokens"), given.pop("grid")
    for name, value in [("tokens", tokens), *given.items()]:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}={value!r} is not allowed; give a whole number from 1")
    if tokens > MOST_TOKENS:
        raise UsageError(
            f"tokens={tokens} is not allowed; one op takes at most {MOST_TOKENS} tokens, so split the image"
        )
    grid = as_grid(method, tokens, grid)
    keep, parameters = method.resolve(parameters, grid=grid, keep=keep)
    width = given["width"]
    # CLIP's heads are 64 wide, in every size.
    given["heads"] = given["heads"] or max(1, width // 64)
    given["head_width"] = given["head_width"] or -(-width // given["heads"])
    given["embedding_width"] = given["embedding_width"] or width
    fixed = Sizes(grid=grid, keep=keep, **given)

    always = output_names(method, parameters)
    outputs = [*always, *(method.diagnostics if diagnostics else ())]
    function = _function(method, parameters, fixed, outputs)
    node = helper.make_node(
        method.op_type, list(function.input), outputs, domain=DOMAIN, **_attributes(parameters, fixed.keep)
    )
    describe = helper.make_tensor_value_info
    rows = fixed.tokens + int(method.takes_cls(parameters))
    inputs = [describe("features", DTYPES[dtype], [fixed.batch, rows, fixed.width])]
    for signal in map(SIGNALS.__getitem__, method.signals(parameters)):
        inputs.append(describe(signal.input, TensorProto.FLOAT, signal.shape(fixed)))
    known: dict[str, tuple[int, list[int]]] = {
        "kept_features": (DTYPES[dtype], [fixed.batch, keep, fixed.width]),
        "keep_indices": (INT64, [fixed.batch, keep]),
        "merged": (BOOL, [fixed.batch, keep]),
    }
    known |= {name: (_element_type(kind), [fixed.batch]) for name, kind in method.reports(parameters).items()}
    results = [describe(name, *known[name]) for name in always]
    results += [describe(name, *_diagnostic_type(method, name)) for name in outputs[len(results) :]]
    graph = helper.make_graph([node], f"{method.name}_keep{keep}", inputs, results)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[function], producer_name="vtexport"
    )


def output_names(method: Method, parameters: Any) -> tuple[str, ...]:
    """The op's outputs: kept_features, keep_indices, where the method merges merged, and its reports."""
    return ("kept_features", "keep_indices", *(("merged",) if method.merges else ()), *method.reports(parameters))


def _element_type(kind: str) -> int:
    return int(TensorProto.DataType.Value(kind))


def _diagnostic_type(method: Method, name: str) -> tuple[int, list[str]]:
    kind, axes = method.diagnostics[name]
    return _element_type(kind), list(axes)


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
        ["features", *(SIGNALS[name].input for name in method.signals(parameters))],
        outputs,
        live_nodes(emitter.nodes, outputs),
        [helper.make_opsetid("", OPSET)],
        attributes=list(_attributes(parameters, sizes.keep)),
    )
