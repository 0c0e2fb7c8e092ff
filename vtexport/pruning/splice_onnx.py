"""Pieces of the ops inside the language model, as standard ONNX ops of opset 20."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import Builder, scoped
from vtexport.pruning.types import Sizes


@scoped("visual_rows")
def visual_rows(g: Builder, inputs: Mapping[str, ir.Value], name: str, sizes: Sizes) -> ir.Value:
    """[n, ...]: the rows of the visual tokens of the input `name` [1, S, ...], in float32."""
    places = g.Add(inputs["visual_start"], np.arange(sizes.tokens))
    return g.as_float(g.Gather(g.Squeeze(inputs[name], [0]), places))


@scoped("splice")
def splice(
    g: Builder, inputs: Mapping[str, ir.Value], kept: ir.Value, sizes: Sizes, block: ir.Value | None = None
) -> dict[str, ir.Value]:
    """The op's outputs from `kept` [n'] int64, ascending among the n visual tokens.

    `block` [n', W], where rows are merged, in the hidden states' type; copies of the kept rows otherwise. Text before
    and behind the image is copied. Lengths follow from the input's shape alone, never from a value.
    """
    hidden, start = inputs["hidden_states"], inputs["visual_start"]
    gone = sizes.tokens - sizes.keep
    length = g.Sub(g.Shape(hidden, start=1, end=2), gone)
    place = g.Range(0, g.Squeeze(length, [0]), 1)
    among = g.Sub(place, start)
    inside = g.And(g.GreaterOrEqual(among, 0), g.Less(among, sizes.keep))
    own = g.Max(0, g.Min(sizes.keep - 1, among))
    visual = g.Add(start, g.Gather(kept, own))
    text = g.Where(g.Less(among, 0), place, g.Add(place, gone))
    rows = g.Where(inside, visual, text)
    hidden = g.Gather(hidden, rows, axis=1)
    if block is not None:
        hidden = g.Where(g.Unsqueeze(inside, [0, 2]), g.Unsqueeze(g.Gather(block, own), [0]), hidden)
    return {"hidden_states_out": hidden, "rows": g.Unsqueeze(rows, [0])}


@scoped("keep_top")
def keep_top(g: Builder, scores: ir.Value, count: int, *, largest: bool = True) -> ir.Value:
    """[count] int64, ascending: where `scores` [n] are largest (smallest), ties to the lower index, NaN last."""
    last = float(np.finfo(np.float32).min if largest else np.finfo(np.float32).max)
    _, chosen = g.TopK(g.Where(g.IsNaN(scores), last, scores), [count], outputs=2, axis=0, largest=int(largest))
    return g.TopK(chosen, [count], outputs=2, axis=0, largest=0)[0]
