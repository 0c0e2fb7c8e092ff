"""CLIP's vision tower (Radford et al., arXiv 2103.00020), cut at the feature layer of the model around it.

The residual stream, LayerNorm and the MLP's activation are float32, whatever the weights are. A tower in float16 or
bfloat16 keeps that type for the operands of its matrix products only: vision transformers grow single channels of the
stream beyond 65504, and bfloat16 would round the small ones away next to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from vtexport.errors import VtexportError
from vtexport.graphs.activations import ACTIVATIONS, activation
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import Dialect
from vtexport.graphs.linear import linear, wide_linear
from vtexport.graphs.weight import Weight
from vtexport.models.parts import TOWER, Shapes, Tower, linear_shapes
from vtexport.models.place import Place
from vtexport.models.registry import tower
from vtexport.models.towers.signals import Projected, attention_signals
from vtexport.pruning.signals import SIGNALS

if TYPE_CHECKING:
    from typing_extensions import Self

EMBEDDINGS, _PRE_NORM, _BLOCK = f"{TOWER}embeddings.", f"{TOWER}pre_layrnorm", f"{TOWER}encoder.layers.{{}}."


@tower("clip_vision_model", strategy="default")
@dataclass(frozen=True, kw_only=True)
class ClipTower(Tower):
    """Patches behind a CLS token, a norm before the blocks."""

    intermediate_size: int
    hidden_act: str  # a value of `vtexport.graphs.activations.ACTIVATIONS`
    layer_norm_eps: float

    has_cls = True

    @classmethod
    def read(cls, config: Any, feature_layers: tuple[int, ...], place: Place) -> Self:
        """As `Tower.read`."""
        place.positive(config, "hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
        place.require(config.num_channels == 3, "num_channels", config.num_channels, "3")
        place.heads(config)
        side = config.image_size // config.patch_size
        place.require(side >= 1, "patch_size", config.patch_size, f"image_size ({config.image_size}) at most")
        place.require(config.hidden_act in ACTIVATIONS, "hidden_act", config.hidden_act, ", ".join(ACTIVATIONS))
        return cls(
            image_size=config.image_size,
            patch_size=config.patch_size,
            grid_height=side,
            grid_width=side,
            cls_rows=int(cls.has_cls),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            feature_layers=feature_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=ACTIVATIONS[config.hidden_act],
            layer_norm_eps=place.epsilon(config, "layer_norm_eps"),
        )

    def shapes(self) -> Shapes:
        """As `Tower.shapes`."""
        width = self.hidden_size
        patch = {f"{EMBEDDINGS}patch_embedding.weight": (width, 3, self.patch_size, self.patch_size)}
        position = {f"{EMBEDDINGS}position_embedding.weight": (self.cls_rows + self.tokens, width)}
        blocks: Shapes = {}
        for number in range(self.num_hidden_layers):
            prefix = _BLOCK.format(number)
            blocks |= self._attention_shapes(prefix) | norm_shapes(prefix + "layer_norm1", width)
            blocks |= self._mlp_shapes(prefix) | norm_shapes(prefix + "layer_norm2", width)
        first = {f"{EMBEDDINGS}class_embedding": (width,)} | patch | position | norm_shapes(_PRE_NORM, width)
        return first | blocks | norm_shapes(f"{TOWER}post_layernorm", width)

    def _attention_shapes(self, prefix: str) -> Shapes:
        width, shapes = self.hidden_size, Shapes()
        for part in ("k", "v", "q", "out"):
            shapes |= linear_shapes(f"{prefix}self_attn.{part}_proj", width, width)
        return shapes

    def _mlp_shapes(self, prefix: str) -> Shapes:
        width, inner = self.hidden_size, self.intermediate_size
        return linear_shapes(prefix + "mlp.fc1", inner, width) | linear_shapes(prefix + "mlp.fc2", width, inner)

    def parts_read(self, blocks: range) -> tuple[str, ...]:
        """As `Tower.parts_read`."""
        return (EMBEDDINGS, _PRE_NORM + ".", *map(_BLOCK.format, blocks))

    def graph(
        self, signals: tuple[str, ...], weights: Mapping[str, Weight], folder: Path, dtype: str, dialect: Dialect
    ) -> ir.Model:
        """As `Tower.graph`.

        Raises:
            VtexportError: the checkpoint holds a tensor for a part of the tower that this graph does not read.
        """
        g = GraphWriter(weights, folder)
        pixels = g.input("pixel_values", [1, 3, self.image_size, self.image_size], "float32")
        found: dict[str, ir.Value] = {}
        states: dict[int, ir.Value] = {}
        late: list[ir.Value] = []
        with g.scope("vision"):
            with g.scope("embeddings"):
                stream = self._embed(g, pixels, dtype)
            stream = self._norm_before(g, stream, dtype)
            for layer in range(1, self.blocks_run(signals) + 1):
                with g.scope(f"layers.{layer - 1}"):
                    stream, projected = self._block(g, stream, layer - 1, dtype, dialect)
                if layer in self.feature_layers:
                    states[layer] = stream
                if layer == self.feature_layer:
                    found = attention_signals(g, self, projected, signals, dtype)
                if layer >= self.similarity_layer:
                    late.append(stream)
            features = states[self.feature_layer]
            if len(self.feature_layers) > 1:
                features = g.op("Concat", *(states[layer] for layer in self.feature_layers), axis=-1)
            features = g.op("Unsqueeze", features, g.constant(np.array([0])), name="features")
            if "similarity_features" in signals:
                found["similarity_features"] = self._mean_of_patches(g, late)
        self._check_all_read(g, signals, weights)
        patches, width = self.tokens, self.hidden_size
        shapes: dict[str, list[int | str]] = {
            "features": [1, self.cls_rows + patches, self.feature_width],
            "cls_attention": [1, patches],
            "received_attention": [1, patches],
            "keys": [1, patches, self.num_attention_heads, self.head_dim],
            "similarity_features": [1, patches, width],
        }
        outputs = [(features, "features", shapes["features"], "float32")]
        outputs += [(found[name], SIGNALS[name].input, shapes[name], "float32") for name in signals]
        return g.model("vision", [pixels], outputs, dialect.opset)

    def _embed(self, g: GraphWriter, pixels: ir.Value, dtype: str) -> ir.Value:
        """[cls + T, D] float32."""
        kind, patches = self._patches(g, pixels, dtype)
        cls, position = (g.cast(g.weight(EMBEDDINGS + name), dtype, kind) for name in
                         ("class_embedding", "position_embedding.weight"))  # fmt: skip
        rows = g.op("Concat", g.op("Unsqueeze", cls, g.constant(np.array([0]))), patches, axis=0)
        return g.cast(g.op("Add", rows, position), kind, "float32")

    def _patches(self, g: GraphWriter, pixels: ir.Value, dtype: str, bias: bool = False) -> tuple[str, ir.Value]:
        """Embedded patches [T, D], and their type: float32 for bfloat16, which Conv takes only since opset 22."""
        kind = "float32" if dtype == "bfloat16" else dtype
        pixels = g.cast(g.cast(pixels, "float32", dtype), dtype, kind)
        names = ("weight", "bias")[: 1 + bias]
        weights = (g.cast(g.weight(f"{EMBEDDINGS}patch_embedding.{name}"), dtype, kind) for name in names)
        side = [self.patch_size, self.patch_size]
        patches = g.op("Conv", pixels, *weights, kernel_shape=side, strides=side, name="patch_embedding")
        patches = g.op("Reshape", patches, g.constant(np.array([self.hidden_size, self.tokens])))
        return kind, g.op("Transpose", patches, perm=[1, 0])

    def _norm_before(self, g: GraphWriter, stream: ir.Value, dtype: str) -> ir.Value:
        """The stream that goes into the first block."""
        return self._norm(g, stream, _PRE_NORM, dtype)

    def _block(
        self, g: GraphWriter, stream: ir.Value, number: int, dtype: str, dialect: Dialect
    ) -> tuple[ir.Value, Projected]:
        """The stream [cls + T, D] behind a block, and what its attention projected."""
        prefix = _BLOCK.format(number)
        normed = g.cast(self._norm(g, stream, prefix + "layer_norm1", dtype), "float32", dtype)
        with g.scope("self_attn"):
            q, k, v = (linear(g, normed, f"{prefix}self_attn.{part}_proj") for part in "qkv")
            attended = dialect.attend_all(g, q, k, v, self.num_attention_heads, self.head_dim, dtype)
            attended = wide_linear(g, g.cast(attended, dtype, "float32"), prefix + "self_attn.out_proj", dtype)
        stream = g.op("Add", stream, attended)
        normed = self._norm(g, stream, prefix + "layer_norm2", dtype)
        with g.scope("mlp"):
            hidden = activation(g, wide_linear(g, normed, prefix + "mlp.fc1", dtype), self.hidden_act)
            hidden = wide_linear(g, hidden, prefix + "mlp.fc2", dtype)
        return g.op("Add", stream, hidden), Projected(q, k)

    def _norm(self, g: GraphWriter, x: ir.Value, name: str, dtype: str) -> ir.Value:
        """LayerNorm over the last axis of x, float32."""
        weight, bias = (g.cast(g.weight(f"{name}.{part}"), dtype, "float32") for part in ("weight", "bias"))
        last = name.rpartition(".")[2]
        return g.op("LayerNormalization", x, weight, bias, epsilon=self.layer_norm_eps, axis=-1, name=last)

    def _mean_of_patches(self, g: GraphWriter, late: list[ir.Value]) -> ir.Value:
        """[1, T, D]: the mean of streams [cls + T, D] without the rows before the patches."""
        total = late[0]
        for each in late[1:]:
            total = g.op("Add", total, each)
        bounds = (g.constant(np.array([value])) for value in (self.cls_rows, self.cls_rows + self.tokens, 0))
        mean = g.op("Mul", g.op("Slice", total, *bounds), g.constant(np.float32(1 / len(late))))
        return g.op("Unsqueeze", mean, g.constant(np.array([0])))

    def _check_all_read(self, g: GraphWriter, signals: tuple[str, ...], weights: Mapping[str, Weight]) -> None:
        """Refuses a part of which only some tensors went into the graph: it is another than the one written here."""
        parts = self.parts_read(range(self.blocks_run(signals)))
        left = [name for name in weights if name.startswith(parts) and name not in g.initializers]
        if left:
            raise VtexportError(
                f"the vision tower has {left[0]}, which its graph would leave out; please report this with the "
                "model's name"
            )


def norm_shapes(name: str, width: int) -> Shapes:
    """The tensors of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
