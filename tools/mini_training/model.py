"""`mini` for training: CLIP's tower, projector and Llama decoder as LLaVA has them, written for speed on a CPU.

The arithmetic is that of transformers' LlavaForConditionalGeneration (`checkpoint.py` writes its names, and a test
compares the two), with two savings: the tower stops at the layer that features come from, and text is run against the
picture's keys and values, so that the many questions about a picture share them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mini_training import words
from mini_training.batches import GRID, PATCH

WIDTH, VISION_LAYERS, VISION_HEADS, VISION_INNER = 128, 6, 4, 512
LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 8, 4, 2, 32, 352
EPSILON, ROPE_BASE = 1e-5, 10000.0
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # preprocessor_config.json
PRECISION = torch.bfloat16  # of activations; weights are float32, cast for each product by autocast
MASKED = -1e4
POINTING_LAYER = 5  # after this many decoder layers nouns are asked where their item is

KeysValues = tuple[Tensor, Tensor]


def linear(inputs: int, outputs: int, *, bias: bool = True, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.zero_() if zero else layer.weight.normal_(0, inputs**-0.5)
        if bias:
            layer.bias.zero_()
    return layer


class Norm(nn.LayerNorm):
    """LayerNorm whose result has its input's precision under autocast."""

    def __init__(self) -> None:
        super().__init__(WIDTH, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weight.to(x.dtype), self.bias.to(x.dtype), EPSILON)


class _Attention(torch.autograd.Function):
    """softmax(q k' / sqrt(D) + mask) v for [B, H, L, D], and keys and values [B, H / G, N, D] that G heads share.

    PyTorch's fused attention takes ten times as long backward as forward on a CPU; plain products do not.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        count, heads, length, size = q.shape
        shared, keys = k.shape[1], k.shape[2]
        q, k, v = (y.reshape(count * shared, -1, size) for y in (q, k, v))  # heads that share keys as further rows
        scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))
        if mask is not None:  # [B or 1, 1, 1, L, N]
            scores.view(count, shared, heads // shared, length, keys).add_(mask)
        weights = scores.softmax(-1)
        out = torch.bmm(weights, v)
        ctx.save_for_backward(q, k, v, weights, out)
        return out.view(count, heads, length, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, out = ctx.saved_tensors
        count, heads, length, size = gradient.shape
        gradient = gradient.reshape(out.shape)
        to_v = torch.bmm(weights.transpose(1, 2), gradient)
        along = (gradient * out).sum(-1, keepdim=True)
        to_scores = torch.bmm(gradient, v.transpose(1, 2)).sub_(along).mul_(weights)
        scale = size**-0.5
        to_q = torch.bmm(to_scores, k).mul_(scale)
        to_k = torch.bmm(to_scores.transpose(1, 2), q).mul_(scale)
        shared = k.shape[0] // count
        grouped = (count, shared, -1, size)
        return to_q.view(count, heads, length, size), to_k.view(grouped), to_v.view(grouped), None


class VisionLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = Norm(), Norm()
        self.q_proj, self.k_proj, self.v_proj = (linear(WIDTH, WIDTH) for _ in range(3))
        self.out_proj = linear(WIDTH, WIDTH, zero=True)
        self.fc1, self.fc2 = linear(WIDTH, VISION_INNER), linear(VISION_INNER, WIDTH, zero=True)

    def forward(self, x: Tensor, *, only_cls: bool = False) -> Tensor:
        rows = x[:, :1] if only_cls else x

        def heads(y: Tensor) -> Tensor:
            return y.view(len(y), -1, VISION_HEADS, WIDTH // VISION_HEADS).transpose(1, 2)

        normed = self.layer_norm1(x)
        q = heads(self.q_proj(normed[:, :1] if only_cls else normed))
        mixed = _Attention.apply(q, heads(self.k_proj(normed)), heads(self.v_proj(normed)), None)
        rows = rows + self.out_proj(mixed.transpose(1, 2).reshape(rows.shape))
        return rows + self.fc2(F.gelu(self.fc1(self.layer_norm2(rows))))


def sine_positions() -> Tensor:
    """[GRID * GRID, WIDTH]: sines and cosines of row and column, from which places can be read by a linear layer."""
    steps = torch.arange(GRID).float()
    frequencies = torch.exp(-torch.arange(WIDTH // 4) / (WIDTH // 4) * math.log(100.0)) * 1.5
    waves = torch.cat([(steps[:, None] * frequencies).sin(), (steps[:, None] * frequencies).cos()], 1)
    rows, columns = waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], -1).reshape(GRID * GRID, WIDTH)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = linear(3 * PATCH**2, WIDTH, bias=False)
        self.cls = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.cat([torch.zeros(1, WIDTH), sine_positions() * 0.5]))
        self.pre_layernorm = Norm()
        self.layers = nn.ModuleList(VisionLayer() for _ in range(VISION_LAYERS))

    def forward(
        self, pixels: Tensor, origins: list[tuple[int, int]], *, last: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features [B, N, W] of the last layer but one, its CLS [B, W], and with `last` the last layer's CLS [B, W]."""
        count, side = len(pixels), pixels.shape[1] // PATCH
        x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        x = x.to(PRECISION).view(count, side, PATCH, side, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
        x = self.patch(x.reshape(count, side * side, -1))
        places = self.positions[1:].view(GRID, GRID, WIDTH)
        parts = [places[top : top + side, left : left + side].reshape(-1, WIDTH) for left, top in origins]
        own = parts[0][None] if side == GRID else torch.stack(parts)
        cls = (self.cls + self.positions[0]).expand(count, 1, WIDTH)
        x = self.pre_layernorm(torch.cat([cls.to(x.dtype), x + own.to(x.dtype)], 1))
        for layer in self.layers[:-1]:
            x = layer(x)
        final = self.layers[-1](x, only_cls=True)[:, 0] if last else None
        return x[:, 1:], x[:, 0], final


class _Rotation(torch.autograd.Function):
    """Turns pairs (x[i], x[i + half]) by angles. Autograd's own derivative of the slices fills and adds large zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    y = torch.empty_like(x)
    first, second = y.chunk(2, -1)
    torch.mul(one, cos, out=first).addcmul_(other, sin, value=-1)
    torch.mul(other, cos, out=second).addcmul_(one, sin)
    return y


class _Rms(torch.autograd.Function):
    """x over its root mean square along the last dimension; the statistics in float32, the rest in x's precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (norm.square() / x.shape[-1] + EPSILON).rsqrt().to(x.dtype)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(inverse)


def rms(x: Tensor) -> Tensor:
    """RMSNorm without its weight, which is multiplied into the matrices after it."""
    return _Rms.apply(x)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))
        self.q_proj = linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k_proj, self.v_proj = (linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False) for _ in range(2))
        self.o_proj = linear(HEADS * HEAD_DIM, WIDTH, bias=False, zero=True)
        self.gate_proj, self.up_proj = (linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = linear(INNER, WIDTH, bias=False, zero=True)

    def queries_keys_values(self, x: Tensor, turns: KeysValues) -> tuple[Tensor, Tensor, Tensor]:
        """[B, heads, L, HEAD_DIM] each, keys and values with `KV_HEADS` heads."""
        count, length, _ = x.shape
        weights = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]) * self.input_layernorm
        heads = F.linear(rms(x), weights).view(count, length, -1, HEAD_DIM).transpose(1, 2)
        turned = _Rotation.apply(heads[:, : HEADS + KV_HEADS], *turns)
        return turned[:, :HEADS], turned[:, HEADS:], heads[:, HEADS + KV_HEADS :]

    def forward(self, x: Tensor, turns: KeysValues, past: KeysValues | None, mask: Tensor) -> tuple[Tensor, KeysValues]:
        """Hidden states [B, L, W] and the new keys and values [B, KV_HEADS, L, HEAD_DIM]."""
        count, length, _ = x.shape
        q, *new = self.queries_keys_values(x, turns)
        both = new if past is None else [torch.cat([old, own], 2) for old, own in zip(past, new, strict=True)]
        mixed = _Attention.apply(q, *both, mask)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(count, length, -1))
        weights = torch.cat([self.gate_proj.weight, self.up_proj.weight]) * self.post_attention_layernorm
        gate, up = F.linear(rms(x), weights).chunk(2, -1)
        return x + self.down_proj(F.silu(gate) * up), (new[0], new[1])


class Heads(nn.Module):
    """Heads for training alone; they are not part of the shipped model."""

    def __init__(self) -> None:
        super().__init__()
        presence = len(words.COLOUR_IDS) + len(words.KIND_IDS) + len(words.PAIRS)
        self.cls, self.last_cls = linear(WIDTH, presence), linear(WIDTH, presence)
        self.no_colour, self.no_kind = (nn.Parameter(torch.randn(1, WIDTH) * 0.1) for _ in range(2))
        self.box = linear(WIDTH, 4 * WIDTH, bias=False)
        self.centre = linear(WIDTH, 1)
        self.point, self.there = linear(WIDTH, 4 * (words.STEPS + 1)), linear(WIDTH, 1)


class Mini(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = Vision()
        self.linear_1, self.linear_2 = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)
        self.embedding = nn.Parameter(torch.randn(words.SIZE, WIDTH) * 0.1)  # of tokens, and the output head
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        self.heads = Heads()

    def project(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))

    def turns(self, places: Tensor) -> KeysValues:
        """Cosines and sines of position ids [L] or [B, L], to be applied to [B, heads, L, HEAD_DIM]."""
        frequencies = ROPE_BASE ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
        angles = places[..., None].float() * frequencies
        angles = angles[:, None] if angles.dim() == 3 else angles
        return angles.cos().to(PRECISION), angles.sin().to(PRECISION)

    def see(self, visual: Tensor) -> list[KeysValues]:
        """Each layer's keys and values of "<s>USER: ", the visual tokens [B, N, W] and the line break."""
        table = self.embedding.to(visual.dtype)
        before, after = (table[ids].expand(len(visual), -1, -1) for ids in (words.BEFORE_IMAGE, words.AFTER_IMAGE))
        x = torch.cat([before, visual, after], 1)
        turns, seen = self.turns(torch.arange(x.shape[1])), []
        mask = torch.full((x.shape[1], x.shape[1]), MASKED, dtype=x.dtype).triu(1)
        for layer in self.layers[:-1]:
            x, new = layer(x, turns, None, mask)
            seen.append(new)
        _, keys, values = self.layers[-1].queries_keys_values(x, turns)
        return [*seen, (keys, values)]

    def read(self, ids: Tensor, turn: Tensor, place: Tensor, seen: list[KeysValues]) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, W] of packed turns after the picture: after `POINTING_LAYER` layers, and after all."""
        count, length = ids.shape
        before = seen[0][0].shape[2]
        own = (turn[:, :, None] == turn[:, None]) & torch.ones(length, length, dtype=torch.bool).tril()
        open_ = torch.cat([torch.ones(count, length, before, dtype=torch.bool), own], 2)[:, None, None]
        mask = torch.zeros(open_.shape, dtype=PRECISION).masked_fill_(~open_, MASKED)
        x, turns = self.embedding.to(PRECISION)[ids], self.turns(place + before)
        middle = x
        for number, (layer, past) in enumerate(zip(self.layers, seen, strict=True), 1):
            x, _ = layer(x, turns, past, mask)
            middle = x if number == POINTING_LAYER else middle
        return middle, x

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(rms(hidden), self.embedding * self.norm).float()
