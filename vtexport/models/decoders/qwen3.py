"""Qwen3 (Qwen team, arXiv 2505.09388): a Llama whose queries and keys have a norm of their own by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import Dialect
from vtexport.models.decoders.llama import LAYER, LlamaDecoder
from vtexport.models.parts import Shapes
from vtexport.models.registry import decoder


@decoder("qwen3")
@dataclass(frozen=True, kw_only=True)
class Qwen3Decoder(LlamaDecoder):
    """RMSNorm over each head's queries and keys, before they are turned; a window in the later layers where asked."""

    takes_windows = True

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool, bool]:
        """Those of the attention where the configuration has them."""
        attention = bool(config.attention_bias)
        return attention, attention, False

    def attention_shapes(self, prefix: str) -> Shapes:
        """As `LlamaDecoder.attention_shapes`."""
        norms = {f"{prefix}{part}_norm.weight": (self.head_dim,) for part in "qk"}
        return super().attention_shapes(prefix) | norms

    def projections(
        self, g: GraphWriter, layer: int, normed: ir.Value, parts: str, dialect: Dialect, dtype: str
    ) -> list[ir.Value]:
        """As `LlamaDecoder.projections`."""
        found = super().projections(g, layer, normed, parts, dialect, dtype)
        return [
            x if part == "v" else self._by_head(g, layer, x, part, dialect, dtype)
            for part, x in zip(parts, found, strict=True)
        ]

    def _by_head(self, g: GraphWriter, layer: int, x: ir.Value, part: str, dialect: Dialect, dtype: str) -> ir.Value:
        """x [S, heads * D] with each head's D values normed."""
        width = self.query_width if part == "q" else self.key_width
        with g.scope(f"{part}_norm"):
            heads = g.op("Reshape", x, g.constant(np.array([-1, width // self.head_dim, self.head_dim])))
            name = f"{LAYER.format(layer)}self_attn.{part}_norm.weight"
            return g.op("Reshape", self.norm(g, heads, name, dialect, dtype), g.constant(np.array([-1, width])))
