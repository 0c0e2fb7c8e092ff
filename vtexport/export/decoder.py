"""The language model as ONNX graphs, written directly from its spec: a run of decoder layers serves prefill and decode.

A graph takes the keys and values of the tokens before (`past_key_values.I.key`, [1, P, H_kv, D], the first P rows of a
cache that the runtime owns) and returns those of its own S tokens (`new_key_values.I.key`, [1, S, H_kv, D]), which the
runtime appends: the cache exists once and is never copied through a graph. Concatenation stands outside `Attention`,
because TensorRT's parser takes that operator with one output only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.export.dialects import Dialect
from vtexport.export.graph import DTYPES, GraphWriter
from vtexport.export.linear import linear
from vtexport.graphs.weight import Weight
from vtexport.models.spec import DecoderSpec


def decoder_segment(
    spec: DecoderSpec,
    weights: Mapping[str, Weight],
    folder: Path,
    dtype: str,
    first: int,
    layers: int,
    dialect: Dialect,
) -> ir.Model:
    """Layers `first` to `first + layers - 1`, batch 1.

    Inputs: `inputs_embeds` [1, S, W] (`hidden_states` for all but the first segment), `position_ids` [1, S] int64, and
    the past keys and values of every layer, numbered as in the whole model. Outputs: `logits` [1, 1, V] of the last
    position (for all but the last segment `hidden_states_out` [1, S, W], and `query` [1, heads, D], that of the last
    row in the last of these layers, with which a pruning step after the segment chooses) and the new keys and values.
    """
    g = GraphWriter(weights, folder)
    is_first, is_last = first == 0, first + layers == spec.num_hidden_layers
    name_in = "inputs_embeds" if is_first else "hidden_states"
    embeds = g.input(name_in, [1, "S", spec.hidden_size], dtype)
    position_ids = g.input("position_ids", [1, "S"], "int64")
    cache_shape: list[int | str] = [1, "P", spec.num_key_value_heads, spec.head_dim]
    past = {
        (layer, kind): g.input(f"past_key_values.{layer}.{kind}", cache_shape, dtype)
        for layer in range(first, first + layers)
        for kind in ("key", "value")
    }
    rotation = dialect.rotation(g, *rope_tables(g, spec, dtype), position_ids)
    mask = _causal_mask(g, embeds, past[first, "key"])
    new: dict[tuple[int, str], ir.Value] = {}

    def norm(x: ir.Value, name: str) -> ir.Value:
        return dialect.rms_norm(g, x, g.weight(name), spec.rms_norm_eps, dtype)

    hidden = g.op("Reshape", embeds, g.constant(np.array([-1, spec.hidden_size])))  # [S, W]: Gemm takes matrices
    for layer in range(first, first + layers):
        prefix = spec.layer_prefix.format(layer)
        normed = norm(hidden, prefix + "input_layernorm.weight")
        query, key, value = (
            g.op("Unsqueeze", linear(g, normed, f"{prefix}self_attn.{part}_proj", spec.attention_bias), _axes(g, 0))
            for part in ("q", "k", "v")
        )  # [1, S, heads * D]
        query = dialect.rotate(g, query, rotation, spec.num_attention_heads, spec.head_dim)
        key = dialect.rotate(g, key, rotation, spec.num_key_value_heads, spec.head_dim)
        by_head = g.constant(np.array([0, 0, spec.num_key_value_heads, spec.head_dim]))
        new[layer, "key"] = g.op("Reshape", key, by_head)
        new[layer, "value"] = g.op("Reshape", value, by_head)
        keys, values = (_with_past(g, spec, past[layer, kind], x) for kind, x in (("key", key), ("value", value)))
        attended = g.op("Squeeze", dialect.attend(g, spec, query, keys, values, mask, dtype), _axes(g, 0))
        hidden = g.op("Add", hidden, linear(g, attended, prefix + "self_attn.o_proj", spec.attention_bias))
        normed = norm(hidden, prefix + "post_attention_layernorm.weight")
        gate = linear(g, normed, prefix + "mlp.gate_proj", spec.mlp_bias)
        up = linear(g, normed, prefix + "mlp.up_proj", spec.mlp_bias)
        gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        hidden = g.op("Add", hidden, linear(g, gated, prefix + "mlp.down_proj", spec.mlp_bias))

    outputs: list[tuple[ir.Value, str, list[int | str], str]] = []
    if is_last:
        # Only the last position predicts the next token.
        last = g.op("Slice", hidden, _axes(g, -1), _axes(g, np.iinfo(np.int64).max), _axes(g, 0))
        logits = linear(g, norm(last, spec.final_norm), spec.head.removesuffix(".weight"), bias=False)
        outputs.append((g.op("Unsqueeze", logits, _axes(g, 0)), "logits", [1, 1, spec.vocab_size], dtype))
    else:
        outputs.append((g.op("Unsqueeze", hidden, _axes(g, 0)), "hidden_states_out", [1, "S", spec.hidden_size], dtype))
        row = g.op("Slice", query, _axes(g, -1), _axes(g, np.iinfo(np.int64).max), _axes(g, 1))
        row = g.op("Reshape", row, g.constant(np.array([1, spec.num_attention_heads, spec.head_dim])))
        outputs.append((row, "query", [1, spec.num_attention_heads, spec.head_dim], dtype))
    new_shape: list[int | str] = [1, "S", spec.num_key_value_heads, spec.head_dim]
    outputs += [(value, f"new_key_values.{layer}.{kind}", new_shape, dtype) for (layer, kind), value in new.items()]
    return g.model("decoder", [embeds, position_ids, *past.values()], outputs, dialect.opset)


def rope_tables(g: GraphWriter, spec: DecoderSpec, dtype: str) -> tuple[ir.Value, ir.Value]:
    """cos and sin [max_positions, D / 2], computed in float32 as transformers does."""
    positions = np.arange(spec.max_position_embeddings, dtype=np.float32)
    angles = positions[:, None] * spec.inv_freq.astype(np.float32)[None]
    tables = (np.cos(angles) * np.float32(spec.attention_scaling), np.sin(angles) * np.float32(spec.attention_scaling))
    cos, sin = (table.astype(DTYPES[dtype].numpy()) for table in tables)
    return g.constant(cos, "rope_cos"), g.constant(sin, "rope_sin")


def _causal_mask(g: GraphWriter, embeds: ir.Value, past_key: ir.Value) -> ir.Value:
    """[1, 1, S, P + S] bool: a token sees the cache and itself and what came before it among the new ones.

    By order in the sequence, not by position id, so that it also holds where pruning has left gaps in the positions.
    """
    new = g.op("Shape", embeds, start=1, end=2)
    past = g.op("Shape", past_key, start=1, end=2)
    total = g.op("Squeeze", g.op("Add", past, new), _axes(g, 0))
    scalar_past = g.op("Squeeze", past, _axes(g, 0))
    zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
    query = g.op("Unsqueeze", g.op("Range", scalar_past, total, one), _axes(g, 1))
    key = g.op("Unsqueeze", g.op("Range", zero, total, one), _axes(g, 0))
    return g.op("Unsqueeze", g.op("LessOrEqual", key, query), g.constant(np.array([0, 1])))


def _with_past(g: GraphWriter, spec: DecoderSpec, past: ir.Value, new: ir.Value) -> ir.Value:
    """[1, P + S, H_kv * D] from the cache's rows and the new ones."""
    flat = g.op("Reshape", past, g.constant(np.array([0, 0, spec.num_key_value_heads * spec.head_dim])))
    return g.op("Concat", flat, new, axis=1)


def _axes(g: GraphWriter, value: int) -> ir.Value:
    return g.constant(np.array([value]))
