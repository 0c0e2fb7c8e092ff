"""CLIP's vision tower as an ONNX graph, written from its spec and cut at LLaVA's feature layer.

The residual stream, LayerNorm and the MLP's activation are float32, whatever the weights are. A tower in float16 or
bfloat16 keeps that type for the operands of its matrix products only: vision transformers grow single channels of the
stream beyond 65504, and bfloat16 would round the small ones away next to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vtexport.errors import VtexportError
from vtexport.export.activations import activation
from vtexport.export.dialects import Dialect
from vtexport.export.graph import GraphWriter
from vtexport.export.linear import linear, wide_linear
from vtexport.export.towers.signals import Projected, attention_signals
from vtexport.graphs.weight import Weight
from vtexport.models.spec import VisionSpec
from vtexport.pruning.signals import SIGNALS

_EMBEDDINGS, _PRE_NORM = "vision_tower.embeddings.", "vision_tower.pre_layrnorm"


def clip_tower(
    spec: VisionSpec,
    signals: tuple[str, ...],
    weights: Mapping[str, Weight],
    folder: Path,
    dtype: str,
    dialect: Dialect,
) -> ir.Model:
    """The tower's graph, batch 1; weights are of `dtype`, inputs and outputs float32.

    Input: `pixel_values` [1, 3, H, W]. Outputs: `features` [1, cls + T, D], what block L gives, with the CLS token as
    row 0; and the signals asked for (`vtexport.pruning.signals`), in their order there: `scores` [1, T], `keys`
    [1, T, heads, D / heads] and `similarity_features` [1, T, D], for which the blocks after L run too.

    Raises:
        VtexportError: the checkpoint holds a tensor for a part of the tower that this graph does not read.
    """
    g = GraphWriter(weights, folder)
    pixels = g.input("pixel_values", [1, 3, spec.image_size, spec.image_size], "float32")
    found: dict[str, ir.Value] = {}
    late: list[ir.Value] = []
    with g.scope("vision"):
        with g.scope("embeddings"):
            stream = _embeddings(g, spec, pixels, dtype)
        stream = _norm(g, spec, stream, _PRE_NORM, dtype)
        for layer in range(1, spec.blocks_run(signals) + 1):
            with g.scope(f"layers.{layer - 1}"):
                stream, projected = _block(g, spec, stream, layer - 1, dtype, dialect)
            if layer == spec.feature_layer:
                features = g.op("Unsqueeze", stream, g.constant(np.array([0])), name="features")
                found = attention_signals(g, spec, projected, signals, dtype)
            if layer >= spec.similarity_layer:
                late.append(stream)
        if "similarity_features" in signals:
            found["similarity_features"] = _mean_of_patches(g, spec, late)
    _check_all_read(g, spec, signals, weights)
    patches, width = spec.tokens, spec.hidden_size
    shapes: dict[str, list[int | str]] = {
        "features": [1, spec.cls_rows + patches, width],
        "cls_attention": [1, patches],
        "received_attention": [1, patches],
        "keys": [1, patches, spec.num_attention_heads, spec.head_dim],
        "similarity_features": [1, patches, width],
    }
    outputs = [(features, "features", shapes["features"], "float32")]
    outputs += [(found[name], SIGNALS[name].input, shapes[name], "float32") for name in signals]
    return g.model("vision", [pixels], outputs, dialect.opset)


def _embeddings(g: GraphWriter, spec: VisionSpec, pixels: ir.Value, dtype: str) -> ir.Value:
    """[cls + T, D] of `dtype`; in float32 for bfloat16, which Conv takes only since opset 22."""
    kind = "float32" if dtype == "bfloat16" else dtype
    pixels = g.cast(g.cast(pixels, "float32", dtype), dtype, kind)
    patch, position, cls = (
        g.cast(g.weight(_EMBEDDINGS + name), dtype, kind)
        for name in ("patch_embedding.weight", "position_embedding.weight", "class_embedding")
    )
    side = [spec.patch_size, spec.patch_size]
    patches = g.op("Conv", pixels, patch, kernel_shape=side, strides=side, name="patch_embedding")
    patches = g.op("Reshape", patches, g.constant(np.array([spec.hidden_size, spec.tokens])))
    patches = g.op("Transpose", patches, perm=[1, 0])
    rows = g.op("Concat", g.op("Unsqueeze", cls, g.constant(np.array([0]))), patches, axis=0)
    return g.cast(g.op("Add", rows, position), kind, "float32")


def _block(
    g: GraphWriter, spec: VisionSpec, stream: ir.Value, number: int, dtype: str, dialect: Dialect
) -> tuple[ir.Value, Projected]:
    """The stream [cls + T, D] behind a block, and what its attention projected."""
    prefix = spec.block_prefix.format(number)
    normed = g.cast(_norm(g, spec, stream, prefix + "layer_norm1", dtype), "float32", dtype)
    with g.scope("self_attn"):
        q, k, v = (linear(g, normed, f"{prefix}self_attn.{part}_proj") for part in "qkv")
        attended = dialect.attend_all(g, q, k, v, spec.num_attention_heads, spec.head_dim, dtype)
        attended = wide_linear(g, g.cast(attended, dtype, "float32"), prefix + "self_attn.out_proj", dtype)
    stream = g.op("Add", stream, attended)
    normed = _norm(g, spec, stream, prefix + "layer_norm2", dtype)
    with g.scope("mlp"):
        hidden = activation(g, wide_linear(g, normed, prefix + "mlp.fc1", dtype), spec.hidden_act)
        hidden = wide_linear(g, hidden, prefix + "mlp.fc2", dtype)
    return g.op("Add", stream, hidden), Projected(q, k)


def _norm(g: GraphWriter, spec: VisionSpec, x: ir.Value, name: str, dtype: str) -> ir.Value:
    """LayerNorm over the last axis of x, float32."""
    weight, bias = (g.cast(g.weight(f"{name}.{part}"), dtype, "float32") for part in ("weight", "bias"))
    return g.op(
        "LayerNormalization", x, weight, bias, epsilon=spec.layer_norm_eps, axis=-1, name=name.rpartition(".")[2]
    )


def _mean_of_patches(g: GraphWriter, spec: VisionSpec, late: list[ir.Value]) -> ir.Value:
    """[1, T, D]: the mean of streams [cls + T, D] without the rows before the patches."""
    total = late[0]
    for each in late[1:]:
        total = g.op("Add", total, each)
    bounds = (g.constant(np.array([value])) for value in (spec.cls_rows, spec.cls_rows + spec.tokens, 0))
    mean = g.op("Mul", g.op("Slice", total, *bounds), g.constant(np.float32(1 / len(late))))
    return g.op("Unsqueeze", mean, g.constant(np.array([0])))


def _check_all_read(g: GraphWriter, spec: VisionSpec, signals: tuple[str, ...], weights: Mapping[str, Weight]) -> None:
    """Refuses a part of which only some tensors went into the graph: it is another than the one written here."""
    parts = (_EMBEDDINGS, _PRE_NORM + ".", *map(spec.block_prefix.format, range(spec.blocks_run(signals))))
    left = [name for name in weights if name.startswith(parts) and name not in g.initializers]
    if left:
        raise VtexportError(
            f"the vision tower has {left[0]}, which its graph would leave out; please report this with the model's name"
        )
