"""Attention windows of a decoder's layers, as transformers' caches and masks read them of any configuration."""

from __future__ import annotations

from typing import Any

from vtexport.models.place import Place


def attention_windows(config: Any, place: Place, *, allowed: bool) -> tuple[int | None, ...]:
    """By layer, how many tokens it sees, itself included; None where a window drops nothing within the positions.

    The keys are those that transformers' code for all models reads, also of a Llama that has no windows of its own.

    Args:
        config: transformers' configuration of the language model.
        place: of it.
        allowed: False refuses windows that drop something.

    Raises:
        UsageError: a layer is of another kind than full or sliding attention, or has a window that is not allowed.
    """
    causal = getattr(config, "is_causal", True)
    place.require(causal is True, "is_causal", causal, "true")
    sharing = getattr(config, "kv_sharing_modes", None)
    place.require(sharing is None, "kv_sharing_modes", sharing, "none")
    positions, layers = config.max_position_embeddings, config.num_hidden_layers
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        place.require(
            window is not None or chunk is None or chunk >= positions, "attention_chunk_size", chunk,
            f"none, or one of all {positions} positions",
        )  # fmt: skip
        kinds = ["full_attention" if window is None else "sliding_attention"] * layers
    known = {"full_attention", "sliding_attention"}
    place.require(set(kinds) <= known and len(kinds) == layers, "layer_types", kinds, "full_attention for every layer")
    near = window if window is not None and window < positions else None
    found = tuple(near if kind == "sliding_attention" else None for kind in kinds)
    dropping = found != (None,) * layers
    place.require(allowed or not dropping, "sliding_window", window, f"none, or one of all {positions} positions")
    place.require(window is None or window >= 1, "sliding_window", window, "1 or more")
    return found
