"""Parts that a model is made of: what exporters, methods and checkpoints ask of each of them.

A part is read from transformers' configuration, says which tensors it has and writes its own graph; it holds no tensors
and no framework objects. Sizes have the names of transformers' configurations. Tensors have *canonical* names: those of
transformers' modules, behind the part's place in the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from vtexport.bundle.manifest import ImagesPerPrompt, Part
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import Dialect
from vtexport.graphs.weight import Weight
from vtexport.models.place import Place

Shapes: TypeAlias = dict[str, tuple[int, ...]]  # by canonical name, in the order of transformers' state_dict

TOWER, CONNECTOR, DECODER = "vision_tower.", "multi_modal_projector.", "language_model."
EMBEDDING, HEAD = f"{DECODER}embed_tokens.weight", "lm_head.weight"


def linear_shapes(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    """The tensors of a linear layer: weight [rows, columns], bias [rows]."""
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


@dataclass(frozen=True, kw_only=True)
class Tower(ABC):
    """A vision tower that turns one image into `cls_rows + grid_height * grid_width` feature rows."""

    image_size: int  # pixels, square input
    patch_size: int
    grid_height: int  # patches
    grid_width: int
    cls_rows: int  # 1 where row 0 is a CLS token, 0 where there is none
    hidden_size: int
    num_hidden_layers: int
    # Indices into hidden_states (0 = embeddings, k = output of block k - 1), whose rows are joined in this order
    feature_layers: tuple[int, ...]
    num_attention_heads: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def feature_layer(self) -> int:
        """The last hidden state that features come from; the signals are those of its block."""
        return max(self.feature_layers)

    @property
    def feature_width(self) -> int:
        """Width of the features."""
        return len(self.feature_layers) * self.hidden_size

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

    @classmethod
    @abstractmethod
    def read(cls, config: Any, feature_layers: tuple[int, ...], place: Place) -> Tower:
        """The tower of transformers' configuration, cut at a hidden state.

        Args:
            config: the vision configuration.
            feature_layers: indices into the hidden states, from 1.
            place: of the configuration, for sentences.

        Raises:
            UsageError: the configuration asks for something that the tower does not do.
        """

    @abstractmethod
    def shapes(self) -> Shapes:
        """Every tensor of the tower, those that no graph reads included."""

    @abstractmethod
    def parts_read(self, blocks: range) -> tuple[str, ...]:
        """Prefixes of the tensors of everything before the first block, and of these blocks."""

    @abstractmethod
    def graph(
        self, signals: tuple[str, ...], weights: Mapping[str, Weight], folder: Path, dtype: str, dialect: Dialect
    ) -> ir.Model:
        """The tower's graph, batch 1; weights are of `dtype`, inputs and outputs float32.

        Input: `pixel_values` [1, 3, H, W]. Outputs: `features` [1, cls + T, F], the hidden states
        `feature_layers` side by side, and the signals asked for (`vtexport.pruning.signals`), in their order there:
        `scores` [1, T], `keys` [1, T, heads, D / heads] and `similarity_features` [1, T, D].

        Args:
            signals: names of `vtexport.pruning.signals`.
            weights: by canonical name.
            folder: where the graph file will stand, from which weight files are named.
            dtype: of the weights.
            dialect: the opset's spelling.
        """


@dataclass(frozen=True, kw_only=True)
class Connector(ABC):
    """The way from features of the vision tower to rows of the language model."""

    in_features: int
    out_features: int

    @abstractmethod
    def shapes(self) -> Shapes:
        """Every tensor of the connector."""

    @abstractmethod
    def write(self, g: GraphWriter, x: ir.Value, rows: int, dtype: str) -> ir.Value:
        """[1, rows, out_features] of x [1, rows, in_features], both float32; `dtype` is that of the weights."""


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """A language model: token embedding, layers with a cache, output head."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    inv_freq: np.ndarray  # [head_dim / 2] float32
    attention_scaling: float  # factor on cos and sin (1.0 for plain RoPE)
    windows: tuple[int | None, ...]  # by layer, how many tokens it sees, itself included; None for all before it
    embedding: str = EMBEDDING
    head: str = HEAD

    @classmethod
    @abstractmethod
    def read(cls, config: Any, place: Place) -> Decoder:
        """The decoder of transformers' text configuration; `place` is its, for sentences.

        Raises:
            UsageError: the configuration asks for something that the decoder does not do.
        """

    @abstractmethod
    def shapes(self) -> Shapes:
        """Every tensor of the language model without the head, which `head_shape` has."""

    @property
    def head_shape(self) -> tuple[int, int]:
        """Of the output head, as of the token embedding."""
        return self.vocab_size, self.hidden_size

    @abstractmethod
    def segment(
        self, weights: Mapping[str, Weight], folder: Path, dtype: str, first: int, layers: int, dialect: Dialect
    ) -> ir.Model:
        """Layers `first` to `first + layers - 1`, batch 1.

        Inputs: `inputs_embeds` [1, S, W] (`hidden_states` for all but the first segment), `position_ids` [1, S] int64,
        and the past keys and values of every layer, numbered as in the whole model. Outputs: `logits` [1, 1, V] of the
        last position (for all but the last segment `hidden_states_out` [1, S, W], and `query` [1, heads, D], that of
        the last row in the last of these layers, with which a pruning step after the segment chooses) and the new keys
        and values.
        """

    @abstractmethod
    def keys_and_query(
        self,
        g: GraphWriter,
        layer: int,
        hidden: ir.Value,
        position_ids: ir.Value,
        dtype: str,
    ) -> tuple[ir.Value, ir.Value]:
        """Keys [1, S, kv_heads, D] and the last row's query [1, heads, D] that a layer makes of hidden [1, S, W]."""


@dataclass(frozen=True)
class ModelSpec:
    """One model: its parts and the token ids that the runtime needs."""

    family: str
    vision: Tower
    connector: Connector
    decoder: Decoder
    image_token_id: int
    ties_head: bool  # to the token embedding, as far as the configuration says it
    images_per_prompt: ImagesPerPrompt  # that transformers' model of the family takes

    def shapes(self) -> Shapes:
        """Every tensor of the model; a head that the configuration ties is left out."""
        head = {} if self.ties_head else {HEAD: self.decoder.head_shape}
        return self.vision.shapes() | self.connector.shapes() | self.decoder.shapes() | head

    @property
    def ties(self) -> dict[str, str]:
        """Tensors that the configuration ties: name -> the one it then is."""
        return {HEAD: EMBEDDING} if self.ties_head else {}

    def optional(self) -> tuple[str, ...]:
        """Prefixes of the tensors that not every graph reads: those of the tower behind its feature layer."""
        read = self.vision.parts_read(range(self.vision.feature_layer))
        behind = (name for name in self.vision.shapes() if not name.startswith(read))
        return tuple(behind)

    def part(self, weight: str) -> Part:
        """The part of the model that a weight belongs to, by its canonical name."""
        if weight == self.decoder.embedding:
            return "embedding"
        if weight == self.decoder.head:
            return "lm_head"
        if weight.startswith(TOWER):
            return "vision_tower"
        return "connector" if weight.startswith(CONNECTOR) else "decoder"

    def with_head(self, head: str, embedding: str) -> ModelSpec:
        """The same with the weights that a checkpoint has for the output head and the token embedding, by name.

        They are one where the two are tied; which name it has follows from what is stored (`checkpoint.binding`).
        """
        return replace(self, decoder=replace(self.decoder, head=head, embedding=embedding))
