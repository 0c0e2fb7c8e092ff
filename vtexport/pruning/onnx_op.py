"""One-node ONNX models of the pruning ops, each with its model-local function (the op's portable form)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import FunctionProto, ModelProto, NodeProto, helper, numpy_helper

from vtexport.dtypes import DTYPES, WEIGHT_DTYPES
from vtexport.errors import UsageError
from vtexport.pruning.emit import Emitter, live_nodes
from vtexport.pruning.op import Op
from vtexport.pruning.types import Sizes, Tensor

DOMAIN = "vtexport"
OPSET = 20  # of the function bodies, the lower of the two dialects
IR_VERSION = 10


def model_of_op(
    op: Op,
    sizes: Sizes,
    *,
    dtype: str,
    diagnostics: bool = False,
    companions: Mapping[str, int] | None = None,
    name: str | None = None,
) -> ModelProto:
    """The model: the node's inputs and outputs are the graph's.

    Args:
        op: With its settings.
        sizes: Fixed in the model; a sequence's length S is not.
        dtype: "float32", "float16" or "bfloat16", of the rows that the op prunes.
        diagnostics: Whether the function also returns the op's intermediate values.
        companions: Widths by name of tensors of `dtype` that run beside the rows, [B, rows, width] each; each gives an
            output `kept_NAME`, gathered by the same indices. Behind a merged row stands that of the token it is named
            after.
        name: Of the graph; the op type when left out.

    Raises:
        UsageError: There is no such dtype, or a companion has the name of one of the op's own tensors.
    """
    if dtype not in WEIGHT_DTYPES:
        raise UsageError(f"dtype={dtype!r} is not allowed; give {', '.join(WEIGHT_DTYPES)}")
    own = {each.name for each in (*op.inputs(), *op.outputs(), *op.diagnostics())}
    for companion in companions or {}:
        if own & {companion, f"kept_{companion}"}:
            raise UsageError(f"companion {companion!r} has the name of the op's own input or output; give another")
    e = Emitter()
    values = op.emit(e, sizes)
    results = [*op.outputs(), *(each for each in op.diagnostics() if diagnostics and each.name in values)]
    function = _function(op, sizes, e, {each.name: values[each.name] for each in results})
    node = helper.make_node(
        op.op_type,
        list(function.input),
        list(function.output),
        name=op.op_type,
        domain=DOMAIN,
        **op.attributes(sizes),
    )
    inputs = [_describe(each, _input_shape(op, each, sizes), dtype) for each in op.inputs()]
    known = {each.name for each in op.outputs()}
    outputs = [_describe(each, sizes.shape(each.axes) if each.name in known else list(each.axes), dtype)
               for each in results]  # fmt: skip
    nodes = [node]
    for companion, width in (companions or {}).items():
        rows = _input_shape(op, op.inputs()[0], sizes)
        inputs.append(helper.make_tensor_value_info(companion, DTYPES[dtype].onnx, [*rows[:2], width]))
        left = sizes.shape(op.outputs()[0].axes)
        outputs.append(helper.make_tensor_value_info(f"kept_{companion}", DTYPES[dtype].onnx, [*left[:2], width]))
        nodes += _gathered(op, companion)
    graph = helper.make_graph(nodes, name or op.op_type, inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[function], producer_name="vtexport"
    )


def _input_shape(op: Op, tensor: Tensor, sizes: Sizes) -> list[int | str]:
    shape = sizes.shape(tensor.axes)
    if tensor.name == op.rows and op.takes_cls:
        shape[1] = sizes.tokens + 1
    return shape


def _describe(tensor: Tensor, shape: list[Any], dtype: str) -> Any:
    own = dtype if tensor.dtype == "features" else tensor.dtype
    return helper.make_tensor_value_info(tensor.name, DTYPES[own].onnx, shape)


def _function(op: Op, sizes: Sizes, emitter: Emitter, outputs: Mapping[str, str]) -> FunctionProto:
    """The op's body with the value names of its outputs. It is built for its attributes' values and sizes; it declares
    the attributes but reads none.

    TensorRT wants a call to use every output a function declares, so it declares just `outputs`.
    """
    named = [helper.make_node("Identity", [value], [name], name=name) for name, value in outputs.items()]
    return helper.make_function(
        DOMAIN,
        op.op_type,
        [each.name for each in op.inputs()],
        list(outputs),
        live_nodes([*emitter.nodes, *named], list(outputs)),
        [helper.make_opsetid("", OPSET)],
        attributes=list(op.attributes(sizes)),
    )


def _gathered(op: Op, companion: str) -> list[NodeProto]:
    """Nodes from the node's indices to `kept_COMPANION`."""
    own = f"{companion}_rows"
    if op.rows == "hidden_states":
        places, nodes = "rows", []
    else:
        skip = numpy_helper.from_array(_int64(int(op.takes_cls)))
        nodes = [
            helper.make_node("Constant", [], [f"{own}_skip"], name=f"{own}_skip", value=skip),
            helper.make_node("Add", ["keep_indices", f"{own}_skip"], [f"{own}_places"], name=f"{own}_places"),
        ]
        places = f"{own}_places"
    axis = numpy_helper.from_array(_int64([2]))
    return [
        *nodes,
        helper.make_node("Constant", [], [f"{own}_axis"], name=f"{own}_axis", value=axis),
        helper.make_node("Unsqueeze", [places, f"{own}_axis"], [f"{own}_each"], name=f"{own}_each"),
        helper.make_node("GatherND", [companion, f"{own}_each"], [f"kept_{companion}"], name=own, batch_dims=1),
    ]


def _int64(value: Any) -> Any:
    import numpy as np

    return np.asarray(value, np.int64)
