"""The linear layer of every graph: the only place where a weight matrix enters one.

`Gemm(transB=1)` keeps the checkpoint's [out, in] layout: no Transpose, no copy, and TensorRT holds such weights once
however many optimisation profiles an engine has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.half import wide_scale


def linear(g: GraphWriter, x: ir.Value, name: str, bias: bool = True) -> ir.Value:
    """x @ weight.T + bias for x [rows, in] of the weights' type, as is the result [rows, out].

    `name` begins the names of weight and bias; its last part names the node.
    """
    weight, *biases = _weights(g, name, bias)
    return g.op("Gemm", x, weight, *biases, transB=1, name=name.rpartition(".")[2])


def wide_linear(g: GraphWriter, x: ir.Value, name: str, dtype: str, bias: bool = True) -> ir.Value:
    """The same for x [rows, in] and a result in float32, of weights of `dtype` (see `vtexport.graphs.half`)."""
    if dtype == "float32":
        return linear(g, x, name, bias)
    _, *biases = _weights(g, name, bias)
    scale = wide_scale(dtype)
    if scale != 1:
        x = g.op("Mul", x, g.constant(np.float32(scale)))
    product = linear(g, g.cast(x, "float32", dtype), name, bias=False)
    wide = g.cast(product, dtype, "float32")
    if scale != 1:
        wide = g.op("Mul", wide, g.constant(np.float32(1 / scale)))
    return g.op("Add", wide, g.cast(biases[0], dtype, "float32")) if bias else wide


def _weights(g: GraphWriter, name: str, bias: bool) -> list[ir.Value]:
    return [g.weight(f"{name}.{part}") for part in ("weight", "bias")[: 1 + bias]]
