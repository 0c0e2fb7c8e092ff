"""SigLIP's vision tower (Zhai et al., arXiv 2303.15343): CLIP's blocks, without a CLS token and a norm before them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.models.parts import TOWER, Shapes, linear_shapes
from vtexport.models.place import Place
from vtexport.models.registry import tower
from vtexport.models.towers.clip import EMBEDDINGS, ClipTower, norm_shapes

_BLOCK, _HEAD = f"{TOWER}encoder.layers.{{}}.", f"{TOWER}head."


@tower("siglip_vision_model", strategy="full")
@dataclass(frozen=True, kw_only=True)
class SiglipTower(ClipTower):
    """All rows are patches. Its pooling head, which no model around it reads, is among its tensors and in no graph."""

    has_cls = False
    has_head: bool = True

    @classmethod
    def read(cls, config: Any, feature_layers: tuple[int, ...], place: Place) -> SiglipTower:
        """As `Tower.read`."""
        return replace(super().read(config, feature_layers, place), has_head=bool(config.vision_use_head))

    def shapes(self) -> Shapes:
        """As `Tower.shapes`; the tensors of the head are there in most checkpoints and never read."""
        width = self.hidden_size
        first: Shapes = {
            f"{EMBEDDINGS}patch_embedding.weight": (width, 3, self.patch_size, self.patch_size),
            f"{EMBEDDINGS}patch_embedding.bias": (width,),
            f"{EMBEDDINGS}position_embedding.weight": (self.tokens, width),
        }
        blocks: Shapes = {}
        for number in range(self.num_hidden_layers):
            prefix = _BLOCK.format(number)
            blocks |= norm_shapes(prefix + "layer_norm1", width) | self._attention_shapes(prefix)
            blocks |= norm_shapes(prefix + "layer_norm2", width) | self._mlp_shapes(prefix)
        return (
            first
            | blocks
            | norm_shapes(f"{TOWER}post_layernorm", width)
            | (self._head_shapes() if self.has_head else {})
        )

    def _head_shapes(self) -> Shapes:
        width, inner = self.hidden_size, self.intermediate_size
        attention: Shapes = {
            f"{_HEAD}probe": (1, 1, width),
            f"{_HEAD}attention.in_proj_weight": (3 * width, width),
            f"{_HEAD}attention.in_proj_bias": (3 * width,),
        }
        return (
            attention
            | linear_shapes(f"{_HEAD}attention.out_proj", width, width)
            | norm_shapes(f"{_HEAD}layernorm", width)
            | linear_shapes(f"{_HEAD}mlp.fc1", inner, width)
            | linear_shapes(f"{_HEAD}mlp.fc2", width, inner)
        )

    def parts_read(self, blocks: range) -> tuple[str, ...]:
        """As `Tower.parts_read`."""
        return (EMBEDDINGS, *map(_BLOCK.format, blocks))

    def _embed(self, g: GraphWriter, pixels: ir.Value, dtype: str) -> ir.Value:
        kind, patches = self._patches(g, pixels, dtype, bias=True)
        position = g.cast(g.weight(f"{EMBEDDINGS}position_embedding.weight"), dtype, kind)
        return g.cast(g.op("Add", patches, position), kind, "float32")

    def _norm_before(self, g: GraphWriter, stream: ir.Value, dtype: str) -> ir.Value:
        return stream
