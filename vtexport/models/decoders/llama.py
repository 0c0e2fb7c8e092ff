"""Llama-type decoders (Touvron et al., arXiv 2307.09288): RMSNorm, rotary positions, grouped queries, a gated MLP.

A graph takes the keys and values of the tokens before (`past_key_values.I.key`, [1, P, H_kv, D], the first P rows of a
cache that the runtime owns) and returns those of its own S tokens (`new_key_values.I.key`, [1, S, H_kv, D]), which the
runtime appends: the cache exists once and is never copied through a graph. Concatenation stands outside `Attention`,
because TensorRT's parser takes that operator with one output only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import DIALECTS, Dialect, Rotation
from vtexport.graphs.linear import linear
from vtexport.graphs.weight import Weight
from vtexport.models.decoders.windows import attention_windows
from vtexport.models.parts import DECODER, EMBEDDING, Decoder, Shapes, linear_shapes
from vtexport.models.place import Place
from vtexport.models.registry import decoder
from vtexport.models.rope import KINDS, rotary

LAYER, _FINAL_NORM = f"{DECODER}layers.{{}}.", f"{DECODER}norm.weight"


@decoder("llama")
@dataclass(frozen=True, kw_only=True)
class LlamaDecoder(Decoder):
    """Layers of attention and a gated MLP with SiLU, each behind a norm.

    Attributes:
        intermediate_size: Width of the MLP.
        qkv_bias, output_bias, mlp_bias: True where these linear layers have biases.
    """

    intermediate_size: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool

    takes_windows = False  # a Llama has none; its kin below have

    @classmethod
    def read(cls, config: Any, place: Place) -> LlamaDecoder:
        """The decoder of transformers' configuration `config`.

        Raises:
            UsageError: the configuration asks for something that is not written here.
        """
        place.positive(config, "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        place.positive(config, "intermediate_size", "max_position_embeddings")
        place.require(config.hidden_act == "silu", "hidden_act", config.hidden_act, "silu")
        rope = config.rope_parameters or {}
        kind = rope.get("rope_type", "default")
        place.require(kind in KINDS, "rope_type", kind, ", ".join(KINDS))
        heads = config.num_attention_heads
        kv_heads = config.num_key_value_heads or heads
        place.require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
        head_dim = getattr(config, "head_dim", None)
        if head_dim is None:
            place.heads(config)
            head_dim = config.hidden_size // heads
        inv_freq, scaling = rotary(rope, head_dim, config.max_position_embeddings)
        turned = 2 * len(inv_freq)
        place.require(turned == head_dim, "the width of rotary positions", turned, f"head_dim, which is {head_dim}")
        qkv_bias, output_bias, mlp_bias = cls.biases(config)
        return cls(
            num_hidden_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            rms_norm_eps=place.epsilon(config, "rms_norm_eps"),
            max_position_embeddings=config.max_position_embeddings,
            inv_freq=inv_freq,
            attention_scaling=scaling,
            intermediate_size=config.intermediate_size,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            mlp_bias=mlp_bias,
            windows=attention_windows(config, place, allowed=cls.takes_windows),
        )

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool, bool]:
        """True where queries, keys and values, the attention's output, and the MLP have biases."""
        attention = bool(config.attention_bias)
        return attention, attention, bool(config.mlp_bias)

    def shapes(self) -> Shapes:
        """As `Decoder.shapes`."""
        width = self.hidden_size
        shapes: Shapes = {EMBEDDING: (self.vocab_size, width)}
        for number in range(self.num_hidden_layers):
            prefix = LAYER.format(number)
            shapes |= self.attention_shapes(f"{prefix}self_attn.") | self.mlp_shapes(f"{prefix}mlp.")
            shapes |= {f"{prefix}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        return shapes | {_FINAL_NORM: (width,)}

    @property
    def query_width(self) -> int:
        """Width of the queries of all heads side by side."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.num_key_value_heads * self.head_dim

    def attention_shapes(self, prefix: str) -> Shapes:
        """The tensors of a layer's attention, in transformers' order."""
        shapes, width = Shapes(), self.hidden_size
        for part, rows in (("q", self.query_width), ("k", self.key_width), ("v", self.key_width)):
            shapes |= linear_shapes(f"{prefix}{part}_proj", rows, width, self.qkv_bias)
        return shapes | linear_shapes(f"{prefix}o_proj", width, self.query_width, self.output_bias)

    def mlp_shapes(self, prefix: str) -> Shapes:
        """The tensors of a layer's MLP, in transformers' order."""
        shapes, width, inner = Shapes(), self.hidden_size, self.intermediate_size
        for part in ("gate", "up"):
            shapes |= linear_shapes(f"{prefix}{part}_proj", inner, width, self.mlp_bias)
        return shapes | linear_shapes(f"{prefix}down_proj", width, inner, self.mlp_bias)

    def segment(
        self, weights: Mapping[str, Weight], folder: Path, dtype: str, first: int, layers: int, dialect: Dialect
    ) -> ir.Model:
        """As `Decoder.segment`."""
        g = GraphWriter(weights, folder)
        is_first, is_last = first == 0, first + layers == self.num_hidden_layers
        name_in = "inputs_embeds" if is_first else "hidden_states"
        embeds = g.input(name_in, [1, "S", self.hidden_size], dtype)
        position_ids = g.input("position_ids", [1, "S"], "int64")
        cache_shape: list[int | str] = [1, "P", self.num_key_value_heads, self.head_dim]
        past = {
            (layer, kind): g.input(f"past_key_values.{layer}.{kind}", cache_shape, dtype)
            for layer in range(first, first + layers)
            for kind in ("key", "value")
        }
        new: dict[tuple[int, str], ir.Value] = {}
        with g.scope("decoder"):
            with g.scope("rotary"):
                rotation = self.rotation(g, dialect, position_ids, dtype)
            with g.scope("mask"):
                masks = _masks(g, embeds, past[first, "key"], set(self.windows[first : first + layers]))
            hidden = g.op("Reshape", embeds, g.constant(np.array([-1, self.hidden_size])))  # [S, W]: for Gemm
            for layer in range(first, first + layers):
                with g.scope(f"layers.{layer}"):
                    normed = self.norm(g, hidden, f"{LAYER.format(layer)}input_layernorm.weight", dialect, dtype)
                    with g.scope("self_attn"):
                        query, key, value = self._project(g, layer, normed, rotation, dialect, dtype)
                        both = []
                        for kind, x in (("key", key), ("value", value)):
                            new[layer, kind] = dialect.by_head(g, x, self.num_key_value_heads, self.head_dim)
                            cached = past[layer, kind]
                            both.append(dialect.with_past(g, cached, x, self.num_key_value_heads, self.head_dim))
                        mask = masks[self.windows[layer]]
                        attended = dialect.attend(g, self, query, both[0], both[1], mask, dtype)
                        name = f"{LAYER.format(layer)}self_attn.o_proj"
                        attended = linear(g, attended, name, self.output_bias)
                    hidden = g.op("Add", hidden, attended)
                    hidden = g.op("Add", hidden, self._mlp(g, layer, hidden, dialect, dtype))
            outputs = self._ends(g, hidden, query, dialect, dtype, is_last=is_last)
        new_shape: list[int | str] = [1, "S", self.num_key_value_heads, self.head_dim]
        outputs += [(value, f"new_key_values.{layer}.{kind}", new_shape, dtype) for (layer, kind), value in new.items()]
        return g.model("decoder", [embeds, position_ids, *past.values()], outputs, dialect.opset)

    def keys_and_query(
        self, g: GraphWriter, layer: int, hidden: ir.Value, position_ids: ir.Value, dtype: str
    ) -> tuple[ir.Value, ir.Value]:
        """As `Decoder.keys_and_query`; in the classic dialect, which every opset takes."""
        dialect, prefix = DIALECTS["classic"], LAYER.format(layer)
        rows = g.op("Reshape", hidden, g.constant(np.array([-1, self.hidden_size])))
        normed = self.norm(g, rows, prefix + "input_layernorm.weight", dialect, dtype)
        first, last, end = (_axes(g, value) for value in (0, -1, np.iinfo(np.int64).max))
        projected = []
        for part, heads, x, at in (
            ("k", self.num_key_value_heads, normed, position_ids),
            (
                "q",
                self.num_attention_heads,
                g.op("Slice", normed, last, end, first),
                g.op("Slice", position_ids, last, end, _axes(g, 1)),
            ),
        ):
            (x,) = self.projections(g, layer, x, part, dialect, dtype)
            projected.append(dialect.rotate(g, x, self.rotation(g, dialect, at, dtype), heads, self.head_dim))
        keys, query = projected  # by head in this dialect
        return keys, g.op("Squeeze", query, first)

    def norm(self, g: GraphWriter, x: ir.Value, name: str, dialect: Dialect, dtype: str) -> ir.Value:
        """RMSNorm over the last axis."""
        return dialect.rms_norm(g, x, g.weight(name), self.rms_norm_eps, dtype)

    def rotation(self, g: GraphWriter, dialect: Dialect, position_ids: ir.Value, dtype: str) -> Rotation:
        """Cosines and sines at position ids [1, S], computed in float32 as transformers does.

        From the inverse frequencies: a table of all positions would be a constant of up to 130 MB in every graph.
        """
        positions = g.op("Unsqueeze", g.op("Cast", position_ids, to=int(ir.DataType.FLOAT)), _axes(g, 2))
        frequencies = dialect.frequencies(self.inv_freq.astype(np.float32))
        angles = g.op("Mul", positions, g.constant(frequencies, "inv_freq"))
        turned = (g.op(name, angles) for name in ("Cos", "Sin"))
        if self.attention_scaling != 1:
            turned = (g.op("Mul", x, g.constant(np.float32(self.attention_scaling))) for x in turned)
        cos, sin = (g.cast(x, "float32", dtype) for x in turned)
        return dialect.rotation(g, cos, sin)

    def projections(
        self, g: GraphWriter, layer: int, normed: ir.Value, parts: str, dialect: Dialect, dtype: str
    ) -> list[ir.Value]:
        """Queries, keys or values [S, heads * D] of normed rows [S, W], not turned yet: those that `parts` names."""
        prefix = LAYER.format(layer)
        return [linear(g, normed, f"{prefix}self_attn.{part}_proj", self.qkv_bias) for part in parts]

    def gate_and_up(self, g: GraphWriter, layer: int, normed: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The two inner rows [S, intermediate_size] of the MLP, the gate without its activation."""
        prefix = LAYER.format(layer)
        gate = linear(g, normed, prefix + "mlp.gate_proj", self.mlp_bias)
        return gate, linear(g, normed, prefix + "mlp.up_proj", self.mlp_bias)

    def _project(
        self, g: GraphWriter, layer: int, normed: ir.Value, rotation: Rotation, dialect: Dialect, dtype: str
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query, key and value in the dialect's form, the first two turned."""
        heads = self.num_key_value_heads
        query, key, value = self.projections(g, layer, normed, "qkv", dialect, dtype)
        query = dialect.rotate(g, query, rotation, self.num_attention_heads, self.head_dim)
        key = dialect.rotate(g, key, rotation, heads, self.head_dim)
        return query, key, dialect.split(g, value, heads, self.head_dim)

    def _mlp(self, g: GraphWriter, layer: int, hidden: ir.Value, dialect: Dialect, dtype: str) -> ir.Value:
        prefix = LAYER.format(layer)
        normed = self.norm(g, hidden, prefix + "post_attention_layernorm.weight", dialect, dtype)
        with g.scope("mlp"):
            gate, up = self.gate_and_up(g, layer, normed)
            gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
            return linear(g, gated, prefix + "mlp.down_proj", self.mlp_bias)

    def _ends(
        self, g: GraphWriter, hidden: ir.Value, query: ir.Value, dialect: Dialect, dtype: str, *, is_last: bool
    ) -> list[tuple[ir.Value, str, list[int | str], str]]:
        """The outputs before the new keys and values, with names and shapes."""
        last, end = _axes(g, -1), _axes(g, np.iinfo(np.int64).max)
        if is_last:  # only the last position predicts the next token
            row = self.norm(g, g.op("Slice", hidden, last, end, _axes(g, 0)), _FINAL_NORM, dialect, dtype)
            logits = g.op("Unsqueeze", linear(g, row, self.head.removesuffix(".weight"), bias=False), _axes(g, 0))
            return [(logits, "logits", [1, 1, self.vocab_size], dtype)]
        row = g.op("Slice", query, last, end, _axes(g, 1))
        row = g.op("Reshape", row, g.constant(np.array([1, self.num_attention_heads, self.head_dim])))
        whole = g.op("Unsqueeze", hidden, _axes(g, 0))
        return [
            (whole, "hidden_states_out", [1, "S", self.hidden_size], dtype),
            (row, "query", [1, self.num_attention_heads, self.head_dim], dtype),
        ]


def _masks(
    g: GraphWriter, embeds: ir.Value, past_key: ir.Value, windows: set[int | None]
) -> dict[int | None, ir.Value]:
    """[1, 1, S, P + S] bool by window: a token sees the cache and itself and what came before it among the new ones.

    By order in the sequence, not by position id, so that it also holds where pruning has left gaps in the positions. A
    window leaves out what is further back.
    """
    new = g.op("Shape", embeds, start=1, end=2)
    past = g.op("Shape", past_key, start=1, end=2)
    total = g.op("Squeeze", g.op("Add", past, new), _axes(g, 0))
    scalar_past = g.op("Squeeze", past, _axes(g, 0))
    zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
    query = g.op("Unsqueeze", g.op("Range", scalar_past, total, one), _axes(g, 1))
    key = g.op("Unsqueeze", g.op("Range", zero, total, one), _axes(g, 0))
    causal = g.op("LessOrEqual", key, query)
    masks = {}
    for window in sorted(windows, key=lambda each: each or 0):
        seen = causal
        if window is not None:
            near = g.op("Greater", key, g.op("Sub", query, g.constant(np.int64(window))))
            seen = g.op("And", causal, near)
        masks[window] = g.op("Unsqueeze", seen, g.constant(np.array([0, 1])))
    return masks


def _axes(g: GraphWriter, value: int) -> ir.Value:
    return g.constant(np.array([value]))
