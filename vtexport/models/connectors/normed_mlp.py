"""ViP-LLaVA's connector (Cai et al., arXiv 2312.00784): LLaVA-1.5's behind a LayerNorm over the joined features."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.models.connectors.mlp import MlpConnector
from vtexport.models.parts import CONNECTOR, Shapes
from vtexport.models.place import Place

_NORM = f"{CONNECTOR}projector_layernorm"


@dataclass(frozen=True, kw_only=True)
class NormedMlpConnector(MlpConnector):
    """Each row of features is normed over all layers together, in float32."""

    layer_norm_eps: float

    @classmethod
    def make_normed(
        cls, in_features: int, out_features: int, hidden_act: str, epsilon: float, place: Place
    ) -> NormedMlpConnector:
        """The connector between these widths, with biases; arguments and errors as of `MlpConnector.make`."""
        plain = MlpConnector.make(in_features, out_features, hidden_act, True, place)
        return cls(
            in_features=in_features, out_features=out_features, hidden_act=plain.hidden_act, bias=True,
            layer_norm_eps=epsilon,
        )  # fmt: skip

    def shapes(self) -> Shapes:
        """As `Connector.shapes`."""
        return {f"{_NORM}.{part}": (self.in_features,) for part in ("weight", "bias")} | super().shapes()

    def prepared(self, g: GraphWriter, x: ir.Value, dtype: str) -> ir.Value:
        """As `MlpConnector.prepared`."""
        weight, bias = (g.cast(g.weight(f"{_NORM}.{part}"), dtype, "float32") for part in ("weight", "bias"))
        name = "projector_layernorm"
        return g.op("LayerNormalization", x, weight, bias, epsilon=self.layer_norm_eps, axis=-1, name=name)
