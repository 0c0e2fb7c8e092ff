"""LLaVA-1.5 in plain PyTorch with random weights: CLIP-L/14-336, the projector, a Llama decoder. For times alone.

Shapes, arithmetic and attention (scaled_dot_product_attention) are the model's; the weights are noise, so that no
checkpoint and no other package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensor = Any


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are LLaVA-1.5-7B's."""

    image: int = 336
    patch: int = 14
    vision_width: int = 1024
    vision_heads: int = 16
    vision_hidden: int = 4096
    vision_layers: int = 23  # of CLIP-L's 24: the features are those after the last but one
    width: int = 4096
    heads: int = 32
    hidden: int = 11008
    layers: int = 32
    vocabulary: int = 32000

    @property
    def grid(self) -> tuple[int, int]:
        return self.image // self.patch, self.image // self.patch


TINY = Shape(image=56, vision_width=32, vision_heads=4, vision_hidden=64, vision_layers=3, width=64, heads=4,
             hidden=96, layers=3, vocabulary=128)  # fmt: skip


def _linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class VisionLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.vision_width
        self.heads = shape.vision_heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (_linear(width, width, bias=True) for _ in range(4))
        self.up, self.down = (
            _linear(width, shape.vision_hidden, bias=True),
            _linear(shape.vision_hidden, width, bias=True),
        )

    def heads_of(self, states: Tensor) -> Tensor:
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.before_attention(states)
        parts = (self.heads_of(linear(normed)) for linear in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(*parts)
        states = states + self.out(attended.transpose(1, 2).flatten(2))
        hidden = self.up(self.before_mlp(states))
        return states + self.down(hidden * torch.sigmoid(1.702 * hidden))

    def cls_attention(self, states: Tensor) -> Tensor:
        """[B, T] float32: attention from CLS to every patch, summed over heads, in this layer on its input."""
        normed = self.before_attention(states)
        query, key = self.heads_of(self.query(normed[:, :1])), self.heads_of(self.key(normed))
        logits = (query @ key.transpose(2, 3)).float() / query.shape[3] ** 0.5
        return logits.softmax(3)[:, :, 0, 1:].sum(1)


class Vision(nn.Module):
    """pixel_values [B, 3, S, S] -> features [B, 1 + T, D] after the last layer here, scores [B, T] of that layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        rows, columns = shape.grid
        self.patches = nn.Conv2d(3, shape.vision_width, shape.patch, shape.patch, bias=False)
        self.cls = nn.Parameter(torch.empty(shape.vision_width))
        self.positions = nn.Parameter(torch.empty(1 + rows * columns, shape.vision_width))
        self.before = nn.LayerNorm(shape.vision_width)
        self.layers = nn.ModuleList(VisionLayer(shape) for _ in range(shape.vision_layers))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        states = self.patches(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls.expand(len(states), 1, -1), states], 1) + self.positions
        states = self.before(states)
        *first, last = self.layers
        for layer in first:
            states = layer(states)
        return last(states), last.cls_attention(states)


class Projector(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first, self.second = (
            _linear(shape.vision_width, shape.width, bias=True),
            _linear(shape.width, shape.width, bias=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(features)))


class DecoderLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.before_attention, self.before_mlp = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.query, self.key, self.value, self.out = (_linear(width, width) for _ in range(4))
        self.gate, self.up, self.down = (
            _linear(width, shape.hidden),
            _linear(width, shape.hidden),
            _linear(shape.hidden, width),
        )

    def forward(self, states: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.before_attention(states)
        parts = (self.query, self.key, self.value)
        query, key, value = (part(normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        query, key = _rotated(query, *turn), _rotated(key, *turn)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.before_mlp(states)
        return states + self.down(functional.silu(self.gate(normed)) * self.up(normed)), key, value


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = heads.chunk(2, 3)
    return heads * cosine + torch.cat([-right, left], 3) * sine


class Decoder(nn.Module):
    """inputs_embeds [1, S, W] -> the last row's logits, keys and values of every layer: what a prefill has to give."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.last = nn.RMSNorm(shape.width, eps=1e-5)
        self.logits = _linear(shape.width, shape.vocabulary)
        self.head_dim = shape.width // shape.heads

    def forward(self, states: Tensor) -> tuple[Tensor, list[Tensor]]:
        half = torch.arange(0, self.head_dim, 2, device=states.device, dtype=torch.float32)
        angles = torch.outer(
            torch.arange(states.shape[1], device=states.device, dtype=torch.float32), 1e4 ** (-half / self.head_dim)
        )
        angles = torch.cat([angles, angles], 1)
        turn = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        cache = []
        for layer in self.layers:
            states, key, value = layer(states, turn)
            cache += [key, value]
        return self.logits(self.last(states[:, -1:])), cache


@dataclass(frozen=True)
class Llava:
    """The three parts, on one device and in one type."""

    shape: Shape
    vision: Vision
    projector: Projector
    decoder: Decoder


@torch.no_grad()
def make_llava(shape: Shape, device: str, dtype: Any, seed: int = 0) -> Llava:
    """Seeded random weights, made on the device: matrices normal with deviation 0.02, norms 1, biases 0."""
    torch.manual_seed(seed)
    parts = []
    for kind in (Vision, Projector, Decoder):
        with torch.device("meta"):
            part = kind(shape)  # type: ignore[arg-type]
        part = part.to(dtype).to_empty(device=device).eval()
        for name, parameter in part.named_parameters():
            if parameter.ndim > 1 or name == "cls":
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        parts.append(part)
    return Llava(shape, *parts)
