"""Parts of a model as the exporters need them: sizes and weight names, no tensors and no framework objects.

Sizes have the names of transformers' configurations, rotary positions those of its modules.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from vtexport.bundle.manifest import Part


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower that turns one image into `cls_rows + grid_height * grid_width` feature rows."""

    image_size: int  # pixels, square input
    patch_size: int
    grid_height: int  # patches
    grid_width: int
    cls_rows: int  # 1 where row 0 is a CLS token, 0 where there is none
    hidden_size: int
    num_hidden_layers: int
    feature_layer: int  # index into hidden_states: 0 = embeddings, k = output of block k - 1
    num_attention_heads: int
    hidden_act: str  # a value of `vtexport.models.activations.ACTIVATIONS`
    layer_norm_eps: float
    block_prefix: str  # of a block's weight names, formatted with its number

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def tokens(self) -> int:
        """Patch tokens of one image, CLS not counted."""
        return self.grid_height * self.grid_width

    @property
    def similarity_layer(self) -> int:
        """The first hidden state of the tower's last third; Nüwa averages those from 16 on of CLIP-L's 24."""
        return round(2 * self.num_hidden_layers / 3)

    def blocks_run(self, signals: Collection[str]) -> int:
        """Number of blocks that a graph with these signals (`vtexport.pruning.signals`) runs, from the first on."""
        return self.num_hidden_layers if "similarity_features" in signals else self.feature_layer


@dataclass(frozen=True)
class ProjectorSpec:
    """Two linear layers with an activation between them."""

    linear_1: str  # what the names of its weight and bias begin with
    linear_2: str
    bias: bool
    activation: str  # "gelu", "gelu_tanh"
    in_features: int
    out_features: int


@dataclass(frozen=True)
class DecoderSpec:
    """A Llama-type decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    inv_freq: np.ndarray  # [head_dim / 2] float64
    attention_scaling: float  # factor on cos and sin (1.0 for plain RoPE)
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

    def part(self, weight: str) -> Part:
        """The part of the model that a weight belongs to, by its canonical name."""
        if weight == self.decoder.embedding:
            return "embedding"
        if weight == self.decoder.head:
            return "lm_head"
        if weight.startswith(self.vision.block_prefix.partition(".")[0] + "."):
            return "vision_tower"
        first = self.projector.linear_1[0]
        return "connector" if weight.startswith(first.partition(".")[0] + ".") else "decoder"

    def with_head(self, head: str, embedding: str) -> ModelSpec:
        """The same with the weights that a checkpoint has for the output head and the token embedding, by name.

        They are one where the two are tied; which name it has follows from what is stored (`checkpoint.binding`).
        """
        return replace(self, decoder=replace(self.decoder, head=head, embedding=embedding))
