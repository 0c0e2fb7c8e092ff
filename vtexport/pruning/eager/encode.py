"""From pixels to the visual tokens that are kept: a Hugging Face LLaVA's tower, a method's reference, the projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vtexport.errors import UsageError
from vtexport.pruning.arrays import checked_inputs
from vtexport.pruning.schedule import Schedule
from vtexport.pruning.signals import SIGNALS
from vtexport.pruning.types import AFTER_CONNECTOR, Selection, Sizes


@dataclass(frozen=True)
class Encoded:
    """The visual tokens of some images.

    Attributes:
        rows: [images, n, W], projected.
        positions: [images, n] int64, each row's position id counted from its image's first.
        span: Position ids that an image takes.
        selections: One of batch 1 an image.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    span: int
    selections: list[Selection]


class Encoder:
    """The vision side of one model under one schedule of a method. `inner` is a `LlavaModel`, `grid` its rows and
    columns.
    """

    def __init__(self, inner: Any, method: str, schedule: Schedule, grid: tuple[int, int]):
        self._inner, self._grid, self._method, self._schedule = inner, grid, method, schedule
        self._placed, self._op = schedule.first, schedule.first.op
        self._wanted = [SIGNALS[name].input for name in schedule.signals]

    def encode(self, pixel_values: torch.Tensor, extra_signals: Mapping[str, torch.Tensor]) -> Encoded:
        """Kept tokens of images [images, 3, H, W]; n is N, or the count that a method reports.

        Raises:
            UsageError: A signal is missing, images get different counts, or gradients would be lost.
            InputError: A signal is not finite.
        """
        op, projector, slot = self._op, self._inner.multi_modal_projector, int(self._op.takes_cls)
        given = signals_of(self._inner, pixel_values, self._schedule.signals)
        features = self._op_rows(given.pop("features"))
        projected = self._placed.place == AFTER_CONNECTOR
        if op.merges and features.requires_grad and self.wants_gradients(pixel_values):
            modules = "vision_tower and multi_modal_projector" if projected else "vision_tower"
            raise UsageError(
                f"{self._method} merges tokens, and no gradient comes back through a merged one; call "
                f"requires_grad_(False) on {modules}, or train with another method"
            )
        selections = [
            self._select(features[image : image + 1].detach(), {n: s[image : image + 1] for n, s in given.items()},
                         extra_signals)
            for image in range(len(features))
        ]  # fmt: skip
        used = self._used(selections)
        rows = torch.cat([selection.kept_features[:, :used] for selection in selections])
        indices = torch.cat([selection.keep_indices[:, :used] for selection in selections])
        if features.requires_grad:  # the same rows, with a way back for gradients
            source = features.gather(1, (indices + slot)[:, :, None].expand(-1, -1, features.shape[2]))
            merged = [selection.merged[:, :used, None] for selection in selections if selection.merged is not None]
            rows = torch.where(torch.cat(merged), rows, source) if merged else source
        span = self._grid[0] * self._grid[1]
        if self._placed.positions == "contiguous":
            span, indices = used, torch.arange(used, device=indices.device).expand_as(indices)
        return Encoded(rows if projected else projector(rows), indices, span, selections)

    def select(self, seen: Mapping[str, torch.Tensor], extra_signals: Mapping[str, torch.Tensor]) -> Selection:
        """The selection of one image from what its tower gave: `features` [1, 1 + T, D] and signals (`signals_of`).

        Raises:
            UsageError, InputError: as `encode`.
        """
        own = {name: each for name, each in seen.items() if name != "features"}
        return self._select(self._op_rows(seen["features"]), own, extra_signals)

    def _op_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Rows as the op takes them: of the tower's features with or without CLS, projected where it stands behind the
        connector."""
        rows = features if self._op.takes_cls else features[:, 1:]
        return self._inner.multi_modal_projector(rows) if self._placed.place == AFTER_CONNECTOR else rows

    def wants_gradients(self, pixel_values: torch.Tensor) -> bool:
        """True where the caller trains or asks for the pixels' gradients, and did not just leave them switched on."""
        return torch.is_grad_enabled() and (self._inner.training or pixel_values.requires_grad)

    @torch.compiler.disable  # loops of Python over single numbers, which compiled code could only leave again
    def _select(
        self, features: torch.Tensor, own: dict[str, torch.Tensor], extra_signals: Mapping[str, torch.Tensor]
    ) -> Selection:
        for name in self._wanted:
            if name not in own and name not in extra_signals:
                how = "ask(question_ids)" if name == "text_embeds" else f"extra_signals[{name!r}]"
                raise UsageError(f"{self._method} needs {name}; set it with {how} on what apply() returned")
        signals = {name: own[name] if name in own else extra_signals[name] for name in self._wanted}
        checked_inputs(features, signals)
        heads, head_dim = signals["keys"].shape[2:] if "keys" in signals else (1, 1)
        sizes = Sizes(
            batch=1,
            grid=self._grid,
            width=features.shape[2],
            keep=self._schedule.visual_tokens,
            heads=heads,
            head_dim=head_dim,
            embedding_width=signals["text_embeds"].shape[2] if "text_embeds" in signals else 1,
        )
        return self._op.select({"features": features, **signals}, sizes)

    def _used(self, selections: list[Selection]) -> int:
        """Rows from the front that every image uses: all, or as many as the op reports (`Op.reports`)."""
        if "count" not in {report.name for report in self._op.reports()}:
            return self._schedule.visual_tokens
        counts = [int(selection.details["count"][0]) for selection in selections]
        if len(set(counts)) > 1:
            raise UsageError(
                f"{self._method} keeps {', '.join(map(str, counts))} tokens of these images with these "
                "parameters; give one image at a time"
            )
        return counts[0]


def signals_of(inner: Any, pixel_values: torch.Tensor, signals: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """`features` [B, 1 + T, D] and those of `signals` that a CLIP tower gives, by tensor name (`Signal.input`).

    From the hidden states that transformers returns: `hidden_states[k]` is the output of block k - 1. The attention row
    and the keys are computed again from the input of the feature layer's block, softmax in float32. Gradients pass
    through `features` alone.
    """
    states = inner.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layer = inner.config.vision_feature_layer % len(states)
    return {"features": states[layer]} | _further_signals(inner, states, layer, signals)


@torch.no_grad()
def _further_signals(
    inner: Any, states: tuple[torch.Tensor, ...], layer: int, signals: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    blocks = inner.vision_tower.encoder.layers
    block = blocks[layer - 1]
    attention = block.self_attn
    x = block.layer_norm1(states[layer - 1])
    batch, rows, _ = x.shape
    keys = attention.k_proj(x).view(batch, rows, attention.num_heads, -1)
    if "cls_attention" in signals:
        query = attention.q_proj(x[:, :1]).view(batch, 1, attention.num_heads, -1)
        logits = torch.einsum("bqhd,bkhd->bhqk", query, keys).float() * attention.scale
        found["scores"] = logits.softmax(-1)[:, :, 0, 1:].sum(1)
    if "received_attention" in signals:
        queries = attention.q_proj(x[:, 1:]).view(batch, rows - 1, attention.num_heads, -1)
        logits = torch.einsum("bqhd,bkhd->bhqk", queries, keys).float() * attention.scale
        found["scores"] = logits.softmax(-1)[..., 1:].mean(2).sum(1)
    if "keys" in signals:
        found["keys"] = keys[:, 1:]
    if "similarity_features" in signals:
        first = round(2 * len(blocks) / 3)
        found["similarity_features"] = torch.stack(states[first:]).float().mean(0)[:, 1:]
    return found
