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

    emitter = Emitter()
    values = method.emit(emitter, sizes=fixed, parameters=parameters)
    results = _outputs(method, parameters, fixed, dtype)
    if diagnostics:
        results |= {
            name: (_element_type(kind), list(axes))
            for name, (kind, axes) in method.diagnostics.items()
            if name in values
        }
    function = _function(method, parameters, fixed, emitter, {name: values[name] for name in results})
    node = helper.make_node(
        method.op_type,
        list(function.input),
        list(results),
        name=method.op_type,
        domain=DOMAIN,
        **_attributes(method, parameters, fixed),
    )
    describe = helper.make_tensor_value_info
    rows = fixed.tokens + int(method.takes_cls(parameters))
    inputs = [describe("features", DTYPES[dtype], [fixed.batch, rows, fixed.width])]
    for signal in map(SIGNALS.__getitem__, method.signals(parameters)):
        inputs.append(describe(signal.input, TensorProto.FLOAT, signal.shape(fixed)))
    outputs = [describe(name, *result) for name, result in results.items()]
    graph = helper.make_graph([node], f"{method.name}_keep{keep}", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[function], producer_name="vtexport"
    )


def _outputs(method: Method, parameters: Any, sizes: Sizes, dtype: str) -> dict[str, tuple[int, list[Any]]]:
    """Element type and shape of the op's outputs: kept_features, keep_indices, where the method merges, merged, and
    what the method gives beyond them."""
    kept = [sizes.batch, sizes.keep]
    outputs: dict[str, tuple[int, list[Any]]] = {
        "kept_features": (DTYPES[dtype], [*kept, sizes.width]),
        "keep_indices": (INT64, kept),
    }
    if method.merges:
        outputs["merged"] = (BOOL, kept)
    outputs |= {name: (_element_type(kind), [sizes.batch]) for name, kind in method.reports(parameters).items()}
    lengths = {"B": sizes.batch, "N": sizes.keep}
    for name, (kind, axes) in method.further_outputs(parameters).items():
        outputs[name] = (_element_type(kind), [lengths[axis] for axis in axes])
    return outputs


def _element_type(kind: str) -> int:
    return int(TensorProto.DataType.Value(kind))


def _attributes(method: Method, parameters: Any, sizes: Sizes) -> dict[str, Any]:
    """The node's attributes: how TensorRT finds the plugin, the budget, the grid where the op has to know it, and every
    parameter, none left to a default."""
    own = {
        name: int(value) if isinstance(value, bool) else value for name, value in dataclasses.asdict(parameters).items()
    }
    grid = {}
    if method.needs_grid and method.has_plugin:
        grid = {"grid_rows": sizes.grid[0], "grid_columns": sizes.grid[1]}
    return {"plugin_namespace": "vtexport", "plugin_version": "1", "keep": sizes.keep, **grid, **own}


def _function(
    method: Method, parameters: Any, sizes: Sizes, emitter: Emitter, outputs: Mapping[str, str]
) -> FunctionProto:
    """The op's body with the value names of its outputs. It is built for its attributes' values and sizes; it declares
    the attributes but reads none.

    TensorRT wants a call to use every output a function declares, so it declares just `outputs`.
    """
    named = [helper.make_node("Identity", [value], [name], name=name) for name, value in outputs.items()]
    return helper.make_function(
        DOMAIN,
        method.op_type,
        ["features", *(SIGNALS[name].input for name in method.signals(parameters))],
        list(outputs),
        live_nodes([*emitter.nodes, *named], list(outputs)),
        [helper.make_opsetid("", OPSET)],
        attributes=list(_attributes(method, parameters, sizes)),
    )
