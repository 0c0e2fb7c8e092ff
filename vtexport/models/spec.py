"""What a model is made of, as the exporters need it: sizes and weight names, no tensors and no framework objects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower that turns one image into `cls_rows + grid_height * grid_width` feature rows."""

    image_size: int  # pixels, square input
    patch_size: int
    grid_height: int  # patches
    grid_width: int
    cls_rows: int  # 1 where row 0 is a CLS token, 0 where there is none
    width: int
    layers: int
    feature_layer: int  # index into hidden_states: 0 = embeddings, k = output of block k - 1
    heads: int
    block_prefix: str  # of a block's weight names, formatted with its number

    @property
    def tokens(self) -> int:
        """Patch tokens of one image, CLS not counted."""
        return self.grid_height * self.grid_width

    @property
    def similarity_layer(self) -> int:
        """The first hidden state of the tower's last third; Nüwa averages those from 16 on of CLIP-L's 24."""
        return round(2 * self.layers / 3)

    def blocks_run(self, signals: Collection[str]) -> int:
        """How many blocks a graph with these signals (`vtexport.pruning.signals`) runs, from the first on."""
        return self.layers if "similarity_features" in signals else self.feature_layer


@dataclass(frozen=True)
class ProjectorSpec:
    """Two linear layers with an activation between them; `names` are (weight, bias or None) of each."""

    first: tuple[str, str | None]
    second: tuple[str, str | None]
    activation: str  # "gelu", "gelu_tanh"
    width_in: int
    width_out: int


@dataclass(frozen=True)
class DecoderSpec:
    """A Llama-type decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_epsilon: float
    max_positions: int
    inverse_frequencies: np.ndarray  # [head_dim / 2] float64
    rope_scale: float  # factor on cos and sin (1.0 for plain RoPE)
    attention_bias: bool
    mlp_bias: bool
    embedding: str  # weight names
    layer_prefix: str  # formatted with the layer number
    final_norm: str
    head: str


@dataclass(frozen=True)
class ModelSpec:
    """One model: its parts and the token ids that the runtime needs."""

    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_token_id: int

    def with_head(self, head: str, embedding: str) -> ModelSpec:
        """The same with the weights that a checkpoint has for the output head and the token embedding, by name.

        They are one where the two are tied; which name it has follows from what is stored (`checkpoint.binding`).
        """
        return replace(self, decoder=replace(self.decoder, head=head, embedding=embedding))
