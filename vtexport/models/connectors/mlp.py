"""LLaVA-1.5's connector (Liu et al., arXiv 2310.03744, section 3.2): two linear layers with an activation between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vtexport.graphs.activations import ACTIVATIONS, activation
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.linear import wide_linear
from vtexport.models.parts import CONNECTOR, Connector, Shapes, linear_shapes
from vtexport.models.place import Place

_TAKEN = ("gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True)
class MlpConnector(Connector):
    """Rows of features to rows of the language model, each for itself."""

    hidden_act: str  # a value of `vtexport.graphs.activations.ACTIVATIONS`
    bias: bool

    @classmethod
    def make(cls, in_features: int, out_features: int, hidden_act: str, bias: bool, place: Place) -> MlpConnector:
        """The connector between these widths; `hidden_act` as transformers names it.

        Raises:
            UsageError: the activation is not one of LLaVA's.
        """
        place.require(hidden_act in _TAKEN, "projector_hidden_act", hidden_act, ", ".join(_TAKEN))
        return cls(in_features=in_features, out_features=out_features, hidden_act=ACTIVATIONS[hidden_act], bias=bias)

    def shapes(self) -> Shapes:
        """As `Connector.shapes`."""
        first = linear_shapes(f"{CONNECTOR}linear_1", self.out_features, self.in_features, self.bias)
        return first | linear_shapes(f"{CONNECTOR}linear_2", self.out_features, self.out_features, self.bias)

    def prepared(self, g: GraphWriter, x: ir.Value, dtype: str) -> ir.Value:
        """Features [rows, in_features] float32 as the first layer takes them."""
        return x

    def write(self, g: GraphWriter, x: ir.Value, rows: int, dtype: str) -> ir.Value:
        """As `Connector.write`."""
        with g.scope("connector"):
            x = g.op("Reshape", x, g.constant(np.array([rows, self.in_features])))
            x = self.prepared(g, x, dtype)
            x = wide_linear(g, x, f"{CONNECTOR}linear_1", dtype, self.bias)
            x = activation(g, x, self.hidden_act)
            x = wide_linear(g, x, f"{CONNECTOR}linear_2", dtype, self.bias)
            return g.op("Reshape", x, g.constant(np.array([1, rows, self.out_features])))
