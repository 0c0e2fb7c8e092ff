"""Pieces of the ops inside the language model, as standard ONNX ops of opset 20."""

from __future__ import annotations

import numpy as np

from vtexport.pruning.emit import Emitter
from vtexport.pruning.types import Sizes


def visual_rows(e: Emitter, tensor: str, sizes: Sizes) -> str:
    """[n, ...]: the rows of the visual tokens of `tensor` [1, S, ...], in float32."""
    places = e.Add("visual_start", np.arange(sizes.tokens))
    return e.as_float(e.Gather(e.Squeeze(tensor, [0]), places))


def splice(e: Emitter, kept: str, sizes: Sizes, block: str | None = None) -> dict[str, str]:
    """The op's outputs from `kept` [n'] int64, ascending among the n visual tokens.

    `block` [n', W], where rows are merged, in the hidden states' type; copies of the kept rows otherwise. Text before
    and behind the image is copied. Lengths follow from the input's shape alone, never from a value.
    """
    gone = sizes.tokens - sizes.keep
    length = e.Sub(e.Shape("hidden_states", start=1, end=2), gone)
    place = e.Range(0, e.Squeeze(length, [0]), 1)
    among = e.Sub(place, "visual_start")
    inside = e.And(e.GreaterOrEqual(among, 0), e.Less(among, sizes.keep))
    own = e.Max(0, e.Min(sizes.keep - 1, among))
    visual = e.Add("visual_start", e.Gather(kept, own))
    text = e.Where(e.Less(among, 0), place, e.Add(place, gone))
    rows = e.Where(inside, visual, text)
    hidden = e.Gather("hidden_states", rows, axis=1)
    if block is not None:
        hidden = e.Where(e.Unsqueeze(inside, [0, 2]), e.Unsqueeze(e.Gather(block, own), [0]), hidden)
    return {"hidden_states_out": hidden, "rows": e.Unsqueeze(rows, [0])}


def keep_top(e: Emitter, scores: str, count: int, *, largest: bool = True) -> str:
    """[count] int64, ascending: where `scores` [n] are largest (smallest), ties to the lower index, NaN last."""
    last = float(np.finfo(np.float32).min if largest else np.finfo(np.float32).max)
    _, chosen = e.TopK(e.Where(e.IsNaN(scores), last, scores), [count], outputs=2, axis=0, largest=int(largest))
    return str(e.TopK(chosen, [count], outputs=2, axis=0, largest=0)[0])
