"""Phi-3 (Abdin et al., arXiv 2404.14219): a Llama whose projections are fused, and stay so in the graph.

Its long-context variants turn positions by another table beyond their first 4096 tokens (`rope_type` longrope), which
a graph with one table cannot do; `read` refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import Dialect
from vtexport.graphs.linear import linear
from vtexport.models.decoders.llama import LAYER, LlamaDecoder
from vtexport.models.parts import Shapes
from vtexport.models.place import Place
from vtexport.models.registry import decoder


@decoder("phi3")
@dataclass(frozen=True, kw_only=True)
class Phi3Decoder(LlamaDecoder):
    """One product for queries, keys and values, one for gate and up; a sliding window where asked, no biases."""

    takes_windows = True

    @classmethod
    def read(cls, config: Any, place: Place) -> LlamaDecoder:
        """As `LlamaDecoder.read`."""
        turned = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        place.require(turned == 1, "partial_rotary_factor", turned, "1.0")
        return super().read(config, place)

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool, bool]:
        """None anywhere."""
        return False, False, False

    def attention_shapes(self, prefix: str) -> Shapes:
        """As `LlamaDecoder.attention_shapes`."""
        return {
            f"{prefix}o_proj.weight": (self.hidden_size, self.query_width),
            f"{prefix}qkv_proj.weight": (self.query_width + 2 * self.key_width, self.hidden_size),
        }

    def mlp_shapes(self, prefix: str) -> Shapes:
        """As `LlamaDecoder.mlp_shapes`."""
        return {
            f"{prefix}gate_up_proj.weight": (2 * self.intermediate_size, self.hidden_size),
            f"{prefix}down_proj.weight": (self.hidden_size, self.intermediate_size),
        }

    def projections(
        self, g: GraphWriter, layer: int, normed: ir.Value, parts: str, dialect: Dialect, dtype: str
    ) -> list[ir.Value]:
        """As `LlamaDecoder.projections`."""
        fused = linear(g, normed, f"{LAYER.format(layer)}self_attn.qkv_proj", bias=False)
        ends = np.cumsum([self.query_width, self.key_width, self.key_width])
        starts = dict(zip("qkv", [0, *ends[:-1]], strict=True))
        sliced = dict(zip("qkv", ends, strict=True))
        return [g.Slice(fused, [starts[part]], [sliced[part]], [1], name=f"{part}_rows") for part in parts]

    def gate_and_up(self, g: GraphWriter, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `LlamaDecoder.gate_and_up`."""
        fused = linear(g, normed, f"{LAYER.format(layer)}mlp.gate_up_proj", bias=False)
        gate, up = g.op("Split", fused, outputs=2, axis=-1, num_outputs=2)
        return gate, up
