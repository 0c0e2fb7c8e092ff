"""Activation functions as ONNX nodes, by the names that transformers' configurations have for them.

Several names are ways to compute one function. Those with parameters of their own (`prelu`, `xielu`) are not here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter

# transformers' name -> the function's
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_10": "gelu_10",
    "quick_gelu": "quick_gelu",
    "hardswish": "hardswish",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(g: GraphWriter, x: ir.Value, name: str) -> ir.Value:
    """The function `name` of every element of x, which is float32."""
    return _WRITTEN[name](g, x)


def _quick_gelu(g: GraphWriter, x: ir.Value) -> ir.Value:
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.constant(np.float32(1.702)))))


def _clipped(g: GraphWriter, x: ir.Value, lowest: float, highest: float) -> ir.Value:
    return g.op("Clip", x, g.constant(np.float32(lowest)), g.constant(np.float32(highest)))


_WRITTEN: dict[str, Callable[[GraphWriter, ir.Value], ir.Value]] = {
    "gelu": lambda g, x: g.op("Gelu", x, approximate="none"),
    "gelu_tanh": lambda g, x: g.op("Gelu", x, approximate="tanh"),
    "gelu_10": lambda g, x: _clipped(g, g.op("Gelu", x, approximate="none"), -10, 10),
    "quick_gelu": _quick_gelu,
    "hardswish": lambda g, x: g.op("HardSwish", x),
    "leaky_relu": lambda g, x: g.op("LeakyRelu", x, alpha=0.01),
    "linear": lambda g, x: x,
    "mish": lambda g, x: g.op("Mish", x),
    "relu": lambda g, x: g.op("Relu", x),
    "relu2": lambda g, x: g.op("Pow", g.op("Relu", x), g.constant(np.float32(2))),
    "relu6": lambda g, x: _clipped(g, x, 0, 6),
    "sigmoid": lambda g, x: g.op("Sigmoid", x),
    "silu": lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
    "tanh": lambda g, x: g.op("Tanh", x),
}
