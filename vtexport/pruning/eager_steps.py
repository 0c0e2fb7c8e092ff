"""Pruning steps inside the language model of a Hugging Face model in eager mode, by hooks on its decoder layers.

A hook in front of every layer from the first step on gives it the rows that are left, with their positions and a causal
mask of their own; the cache then holds fewer rows behind a step by itself. Keys and the last row's query are projected
anew from a layer's input, so that no attention map is needed and any attention implementation serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vtexport.pruning.llm.step import LLMSelection, LLMSizes, LLMStep


@dataclass
class StepState:
    """What one prefill left, for the decoding steps on the same cache.

    Attributes:
        visual_start: Row of the first visual token.
        labels: [n] int64 clusters from behind the vision tower, where a step reads them.
        selections: What each step kept.
        offsets: By layer, what to take from the position ids of new tokens from that layer on.
    """

    visual_start: int
    labels: torch.Tensor | None = None
    selections: list[LLMSelection] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)


class StepHooks:
    """The hooks of one model. `begin` says what the next forward pass is; `remove` takes them off."""

    def __init__(self, language_model: Any, steps: Sequence[LLMStep]):
        self._model, self._steps = language_model, {step.layer: step for step in steps}
        self._watched = {step.layer - 1 for step in steps if step.source == "before"}
        self._state: StepState | None = None
        self._prefill = False
        self._seen: tuple[torch.Tensor, Any] | None = None  # input of a watched layer, with cos and sin
        self._now: dict[str, Any] = {}  # what replaces the arguments of the layers from the last step on
        first = min(self._steps) - 1
        self._handles = [
            layer.register_forward_pre_hook(self._hook(number), with_kwargs=True)
            for number, layer in enumerate(language_model.layers)
            if number >= first
        ]

    def begin(self, state: StepState | None, *, prefill: bool) -> None:
        """The next pass prunes (`prefill`) or goes on behind a prefill that did; None where there is no image."""
        self._state, self._prefill, self._now, self._seen = state, prefill, {}, None

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, number: int) -> Any:
        def before_layer(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._state is None:
                return None
            hidden = args[0]
            if number in self._steps:
                if self._prefill:
                    hidden = self._prune(self._steps[number], layer, hidden, kwargs)
                else:
                    self._shift(number, hidden, kwargs)
            kwargs = kwargs | self._now
            if number in self._watched:
                self._seen = hidden, kwargs["position_embeddings"]
            return (hidden, *args[1:]), kwargs

        return before_layer

    def _prune(self, step: LLMStep, layer: Any, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        assert self._state is not None
        given = {**kwargs, **self._now}
        if step.source == "before":
            assert self._seen is not None
            source, (seen, turned) = self._model.layers[step.layer - 1], self._seen
        else:
            source, seen, turned = layer, hidden, given["position_embeddings"]
        signals = dict(zip(("keys", "query"), _keys_and_query(source, seen, turned), strict=True))
        if self._state.labels is not None:
            signals["labels"] = self._state.labels
        config, start = source.self_attn.config, self._state.visual_start
        sizes = LLMSizes(
            tokens=step.tokens,
            keep=step.keep,
            width=hidden.shape[2],
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=source.self_attn.head_dim,
        )
        wanted = {name: signals[name].detach() for name in step.op.signals}
        chosen = step.op.select(hidden[0].detach(), start, wanted, sizes=sizes, parameters=step.parameters)
        self._state.selections.append(chosen)
        end = start + step.tokens
        hidden = torch.cat([hidden[:, :start], chosen.rows[None].to(hidden.dtype), hidden[:, end:]], dim=1)
        positions = given["position_ids"]
        left = torch.cat([positions[:, :start], positions[:, start:end][:, chosen.kept], positions[:, end:]], dim=1)
        if step.positions == "official":
            places = torch.arange(positions.shape[1], device=left.device)
            left = torch.cat([places[:start], start + chosen.kept, places[end:]])[None]
        if step.positions == "compacted":
            left = torch.arange(hidden.shape[1], device=left.device)[None]
            self._state.offsets[step.layer] = int(positions[0, -1] - left[0, -1])
        self._now = {
            "position_ids": left,
            "position_embeddings": self._model.rotary_emb(hidden, position_ids=left),
            "attention_mask": _causal_mask(self._model.config, hidden),
        }
        return hidden

    def _shift(self, number: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """A decoding step: one new row sees the whole of its layer's cache, at a position of its own."""
        assert self._state is not None
        positions = {**kwargs, **self._now}["position_ids"] - self._state.offsets.get(number, 0)
        self._now = {
            "position_ids": positions,
            "position_embeddings": self._model.rotary_emb(hidden, position_ids=positions),
            "attention_mask": None,
        }


def _keys_and_query(layer: Any, hidden: torch.Tensor, turned: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [S, kv_heads, D] of a decoder layer and the query [heads, D] of its last row, from its input [1, S, W]."""
    attention, (cos, sin) = layer.self_attn, turned
    x = layer.input_layernorm(hidden)[0]
    keys = attention.k_proj(x).unflatten(-1, (-1, attention.head_dim))
    query = attention.q_proj(x[-1:]).unflatten(-1, (-1, attention.head_dim))
    cos, sin = cos[0, :, None], sin[0, :, None]
    return _rotated(keys, cos, sin), _rotated(query, cos[-1:], sin[-1:])[0]


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _causal_mask(config: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """[1, 1, S, S] to be added to logits, by order of the rows; None for flash attention, which is causal by itself."""
    if "flash" in str(config._attn_implementation):
        return None
    rows = hidden.shape[1]
    lowest = torch.finfo(hidden.dtype).min
    return torch.full((rows, rows), lowest, dtype=hidden.dtype, device=hidden.device).triu(1)[None, None]
