"""Pruning steps inside the language model of a Hugging Face model in eager mode, by hooks on its decoder layers.

A hook in front of every layer from the first step on gives it the rows that are left, with their positions and a causal
mask of their own; the cache then holds fewer rows behind a step by itself. Keys and the last row's query are projected
anew from a layer's input, so that no attention map is needed and any attention implementation serves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from vtexport.errors import UsageError
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import Selection, Sizes


@dataclass
class StepState:
    """State that one prefill left, for the decoding steps on the same cache.

    Attributes:
        visual_start: Row of the first visual token.
        labels: [n] int64 clusters from behind the vision tower, where a step reads them.
        selections: What each step kept.
        offsets: By layer, what to take from the position ids of new tokens from that layer on.
    """

    visual_start: int
    labels: torch.Tensor | None = None
    selections: list[Selection] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)


class _Pass(threading.local):
    """The pass that a thread is in; each thread has its own."""

    state: StepState | None = None  # None outside of a pass with images
    prefill = False
    seen: tuple[torch.Tensor, Any] | None = None  # input of a watched layer, with cos and sin
    now: dict[str, Any]  # what replaces the arguments of the layers from the last step on


class StepHooks:
    """The hooks of one model, which act `during` passes with images alone; `remove` takes them off."""

    def __init__(self, language_model: Any, steps: Sequence[PlacedOp]):
        self._model, self._steps = language_model, {step.layer: step for step in steps}
        self._watched = {step.layer - 1 for step in steps if step.source == "before"}
        self._pass = _Pass()
        first = min(self._steps) - 1
        self._handles = [
            layer.register_forward_pre_hook(_LayerHook(self, number), with_kwargs=True)
            for number, layer in enumerate(language_model.layers)
            if number >= first
        ]

    @contextlib.contextmanager
    def during(self, state: StepState, *, prefill: bool) -> Iterator[None]:
        """A pass that prunes (`prefill`), or one that goes on behind a prefill that did."""
        own = self._pass
        own.state, own.prefill, own.now, own.seen = state, prefill, {}, None
        try:
            yield
        finally:
            own.state, own.now, own.seen = None, {}, None

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def before_layer(self, number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """New arguments of a layer, or None where it takes its own."""
        own = self._pass
        if own.state is None:
            return None
        hidden = args[0]
        if number in self._steps:
            if own.prefill:
                hidden = self._prune(self._steps[number], layer, hidden, kwargs)
            else:
                self._shift(number, hidden, kwargs)
        kwargs = kwargs | own.now
        if number in self._watched:
            own.seen = hidden, kwargs["position_embeddings"]
        return (hidden, *args[1:]), kwargs

    def _prune(self, step: PlacedOp, layer: Any, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        own = self._pass
        assert own.state is not None
        given = {**kwargs, **own.now}
        if step.source == "before":
            assert own.seen is not None
            source, (seen, turned) = self._model.layers[step.layer - 1], own.seen
        else:
            source, seen, turned = layer, hidden, given["position_embeddings"]
        start, end = own.state.visual_start, own.state.visual_start + step.tokens
        chosen = _choose(step, source, hidden, seen, turned, own.state)
        own.state.selections.append(chosen)
        kept = chosen.keep_indices[0]
        visual = hidden[:, start:end][:, kept]
        if chosen.merged is not None:
            visual = torch.where(chosen.merged[:, :, None], chosen.kept_features.to(hidden.dtype), visual)
        hidden = torch.cat([hidden[:, :start], visual, hidden[:, end:]], dim=1)
        positions = given["position_ids"]
        left = torch.cat([positions[:, :start], positions[:, start:end][:, kept], positions[:, end:]], dim=1)
        if step.positions == "official":
            places = torch.arange(positions.shape[1], device=left.device)
            left = torch.cat([places[:start], start + kept, places[end:]])[None]
        if step.positions == "compacted":
            left = torch.arange(hidden.shape[1], device=left.device)[None]
            own.state.offsets[step.layer] = int(positions[0, -1] - left[0, -1])
        own.now = self._arguments(step.layer, hidden, left, given)
        return hidden

    def _shift(self, number: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Behind a prefill: new rows see the whole of their layer's cache, at positions of their own."""
        own = self._pass
        assert own.state is not None
        given = {**kwargs, **own.now}
        positions = given["position_ids"] - own.state.offsets.get(number, 0)
        own.now = self._arguments(number, hidden, positions, given)

    def _arguments(self, number: int, hidden: torch.Tensor, positions: torch.Tensor, given: Mapping[str, Any]) -> Any:
        """Arguments of the layers from `number` on."""
        return {
            "position_ids": positions,
            "position_embeddings": self._model.rotary_emb(hidden, position_ids=positions),
            "attention_mask": _causal_mask(self._model.config, hidden, given.get("past_key_values"), number),
        }


class _LayerHook:
    """The hook of one layer."""

    def __init__(self, hooks: StepHooks, number: int):
        self._hooks, self._number = hooks, number

    @torch.compiler.disable  # compiled code would take the state of the pass for a constant
    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._hooks.before_layer(self._number, layer, args, kwargs)

    def __reduce__(self) -> NoReturn:
        raise no_copy()


def no_copy() -> UsageError:
    """The refusal to copy or pickle what belongs to a model under pruning."""
    return UsageError(
        "a model under pruning can be neither copied nor pickled, because the copy would share its state; "
        "call remove() on what apply() returned first"
    )


@torch.no_grad()
def _choose(
    step: PlacedOp, source: Any, hidden: torch.Tensor, seen: torch.Tensor, turned: Any, state: StepState
) -> Selection:
    """The selection of a step, by the keys and the query of the layer `source`, whose input is `seen`."""
    signals = {
        name: signal[None]
        for name, signal in zip(("keys", "query"), _keys_and_query(source, seen, turned), strict=True)
    }
    if state.labels is not None:
        signals["labels"] = state.labels[None]
    config = source.self_attn.config
    sizes = Sizes(
        batch=1,
        grid=(1, step.tokens),
        width=hidden.shape[2],
        keep=step.keep,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=source.self_attn.head_dim,
    )
    given = {"hidden_states": hidden, "visual_start": torch.tensor([state.visual_start]), **signals}
    return step.op.select({each.name: given[each.name].to(hidden.device) for each in step.op.inputs()}, sizes)


def _keys_and_query(layer: Any, hidden: torch.Tensor, turned: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [S, kv_heads, D] of a decoder layer and the query [heads, D] of its last row, from its input [1, S, W]."""
    attention, (cos, sin) = layer.self_attn, turned
    x = layer.input_layernorm(hidden)[0]
    by_head = (-1, attention.head_dim)
    query, keys = (each.unflatten(-1, by_head) for each in _projected(attention, x))
    if hasattr(attention, "q_norm"):  # Qwen3's, of each head
        query, keys = attention.q_norm(query), attention.k_norm(keys)
    cos, sin = cos[0, :, None], sin[0, :, None]
    return _rotated(keys, cos, sin), _rotated(query, cos[-1:], sin[-1:])[0]


def _projected(attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The query [1, heads * D] of the last of the rows x [S, W], and all keys [S, kv_heads * D]."""
    if not hasattr(attention, "qkv_proj"):
        return attention.q_proj(x[-1:]), attention.k_proj(x)
    config = attention.config  # Phi-3's are fused
    widths = [heads * attention.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)]
    query, keys, _ = attention.qkv_proj(x).split([*widths, widths[1]], dim=-1)
    return query[-1:], keys


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _causal_mask(config: Any, hidden: torch.Tensor, cache: Any, layer: int) -> torch.Tensor | None:
    """[1, 1, S, M] to be added to logits, by order of the rows: S new ones behind those in the layer's cache, whose
    room is M rows. None where every new row sees everything, and for flash attention, which is causal by itself."""
    rows = hidden.shape[1]
    past, room = (0, rows) if cache is None else (int(cache.get_seq_length(layer)), _room(cache, rows, layer))
    if "flash" in str(config._attn_implementation) or (rows == 1 and room == past + 1):
        return None
    places = torch.arange(room, device=hidden.device)
    hidden_ones = places > past + torch.arange(rows, device=hidden.device)[:, None]
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(rows, room, dtype=hidden.dtype, device=hidden.device).masked_fill(hidden_ones, lowest)[
        None, None
    ]


def _room(cache: Any, rows: int, layer: int) -> int:
    """Keys that a layer's attention gets with `rows` new ones: more than are filled where a cache has a fixed size."""
    return int(cache.get_mask_sizes(rows, layer)[0])
