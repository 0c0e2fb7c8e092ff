"""Pruning ops in graphs: a node with its model-local function (the op's portable form), and one-node models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx import ModelProto

from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import UsageError
from vtexport.graphs.builder import Builder, GraphWriter, describe, live_nodes
from vtexport.graphs.files import to_proto
from vtexport.pruning.op import Op
from vtexport.pruning.types import Sizes, Tensor

DOMAIN = "vtexport"
OPSET = 20  # of the function bodies, the lower of the two dialects


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
    g = GraphWriter({}, Path())
    inputs = op_inputs(g, op, op.inputs(), sizes, dtype)
    function = op_function(op, sizes, diagnostics=diagnostics)
    values = call_op(g, op, sizes, function, inputs, dtype)
    tensors = [each for each in (*op.outputs(), *op.diagnostics()) if each.name in values]
    outputs = [(values[each.name], each.name, _output_shape(op, each, sizes), own_dtype(each, dtype))
               for each in tensors]  # fmt: skip
    for companion, width in (companions or {}).items():
        rows, left = op_shape(op, op.inputs()[0], sizes), sizes.shape(op.outputs()[0].axes)
        inputs[companion] = g.input(companion, [*rows[:2], width], dtype)
        kept = _gathered(g, op, inputs[companion], values)
        outputs.append((kept, f"kept_{companion}", [*left[:2], width], dtype))
    return to_proto(g.model(name or op.op_type, list(inputs.values()), outputs, OPSET, [function]))


def op_inputs(g: Builder, op: Op, tensors: Iterable[Tensor], sizes: Sizes, dtype: str) -> dict[str, ir.Value]:
    """Graph inputs by name for these of the op's inputs, its rows in `dtype`."""
    return {each.name: g.input(each.name, op_shape(op, each, sizes), own_dtype(each, dtype)) for each in tensors}


def op_function(op: Op, sizes: Sizes, *, diagnostics: bool = False) -> ir.Function:
    """The op's body, for its settings and these sizes. It declares the node's attributes but reads none.

    TensorRT wants a call to use every output a function declares, so it declares the `diagnostics` only if asked to.
    """
    g = Builder()
    inputs = {each.name: g.input(each.name) for each in op.inputs()}
    with g.scope(op.op_type):
        values = op.emit(g, inputs, sizes)
        results = [*op.outputs(), *(each for each in op.diagnostics() if diagnostics and each.name in values)]
        outputs = [g.op("Identity", values[each.name], outputs=[each.name], name=each.name)[0] for each in results]
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=live_nodes(g.nodes, outputs), opset_imports={"": OPSET}, name=op.op_type
    )
    attributes = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in op.attributes(sizes)]
    return ir.Function(DOMAIN, op.op_type, graph=graph, attributes=attributes)


def call_op(
    g: Builder, op: Op, sizes: Sizes, function: ir.Function, inputs: Mapping[str, ir.Value], dtype: str
) -> dict[str, ir.Value]:
    """The op's node, with the values of its outputs by name; its rows are in `dtype`."""
    names = [str(each.name) for each in function.outputs]
    read = [inputs[each.name] for each in op.inputs()]
    values = g.op(op.op_type, *read, outputs=names, domain=DOMAIN, **op.attributes(sizes))
    found = dict(zip(names, values, strict=True))
    for each in (*op.outputs(), *op.diagnostics()):
        if each.name in found:
            describe(found[each.name], _output_shape(op, each, sizes), own_dtype(each, dtype))
    return found


def op_shape(op: Op, tensor: Tensor, sizes: Sizes) -> list[int | str]:
    """Shape of one of the op's inputs."""
    shape = sizes.shape(tensor.axes)
    if tensor.name == op.rows and op.takes_cls:
        shape[1] = sizes.tokens + 1
    return shape


def own_dtype(tensor: Tensor, dtype: str) -> str:
    """Element type of one of the op's tensors where its rows are in `dtype`."""
    return dtype if tensor.dtype == "features" else tensor.dtype


def _output_shape(op: Op, tensor: Tensor, sizes: Sizes) -> list[int | str]:
    known = {each.name for each in op.outputs()}
    return sizes.shape(tensor.axes) if tensor.name in known else list(tensor.axes)


def _gathered(g: Builder, op: Op, companion: ir.Value, values: Mapping[str, ir.Value]) -> ir.Value:
    """The rows of a companion that the op kept."""
    with g.scope(f"{companion.name}_rows"):
        places = values["rows"] if op.rows == "hidden_states" else g.Add(values["keep_indices"], int(op.takes_cls))
        return g.GatherND(companion, g.Unsqueeze(places, [2]), batch_dims=1)
