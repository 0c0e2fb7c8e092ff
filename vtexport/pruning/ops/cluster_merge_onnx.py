"""VtxClusterMerge as standard ONNX ops of opset 20. Counts are whole numbers in float32, as in the other ops."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import Builder, scoped
from vtexport.pruning.parts_onnx import rounded_quotient
from vtexport.pruning.splice_onnx import splice, visual_rows
from vtexport.pruning.types import Sizes


def emit_cluster_merge(
    g: Builder, inputs: Mapping[str, ir.Value], saliency: ir.Value, sizes: Sizes, *, clusters: int, mean: bool
) -> dict[str, ir.Value]:
    """The body, from l [n] of the visual tokens."""
    tokens, keep, slots = sizes.tokens, sizes.keep, clusters + 1  # slot 0 is the label -1
    slot = g.Add(g.Max(-1, g.Min(clusters - 1, g.Squeeze(inputs["labels"], [0]))), 1)
    member = g.as_float(g.Equal(slot, np.arange(slots)[:, None]))  # [slots, n]
    size = g.total(member, 1, keepdims=False)
    present = g.Greater(size, 0.0)
    count = g.ReduceSum(g.as_float(present), keepdims=0)
    total = g.Squeeze(g.MatMul(member, g.Unsqueeze(saliency, [1])), [1])

    shares = _quota(g, size, total, present, count, slots=slots, tokens=tokens, keep=keep)
    if slots > keep:  # more clusters than tokens to keep: then groups of clusters take the clusters' place
        crowded = g.Greater(count, float(keep))
        group = g.Min(float(keep - 1), _ahead(g, total, present, slots))
        own = g.Gather(group, slot)
        slot = g.Where(crowded, g.as_int(own), slot)
        shares = g.Where(crowded, 0.0, shares)
        member = g.as_float(g.Equal(slot, np.arange(slots)[:, None]))
        size = g.total(member, 1, keepdims=False)

    # A token is single if fewer members of its cluster than the quota are more important; lower index on ties.
    index = np.arange(tokens)
    earlier = np.tril(np.ones((tokens, tokens), bool), -1)
    same = g.Equal(g.Unsqueeze(slot, [1]), g.Unsqueeze(slot, [0]))
    mine, other = g.Unsqueeze(saliency, [1]), g.Unsqueeze(saliency, [0])
    before = g.Or(g.Less(other, mine), g.And(g.Equal(other, mine), earlier))
    rank = g.total(g.as_float(g.And(same, before)), 1, keepdims=False)
    single = g.Less(rank, g.Gather(shares, slot))

    # The middle one of the others stands for them.
    rest = g.Not(single)
    place = g.total(g.as_float(g.And(g.And(same, earlier), g.Unsqueeze(rest, [0]))), 1, keepdims=False)
    left = g.Sub(size, shares)
    middle = g.And(rest, g.Equal(place, g.Gather(g.Floor(g.Mul(left, 0.5)), slot)))
    key = g.Add(g.Mul(float(tokens), g.as_float(g.Not(g.Or(single, middle)))), index.astype(np.float32))
    _, kept = g.TopK(key, [keep], outputs=2, axis=0, largest=0)

    weights = g.Div(g.Mul(member, g.as_float(rest)), g.Max(1.0, g.Unsqueeze(left, [1])))
    visual = visual_rows(g, inputs, "hidden_states", sizes)
    average = g.Gather(g.MatMul(weights, visual), g.Gather(slot, kept))
    rows = g.Gather(visual, kept)
    made = average if mean else g.Add(rows, average)
    block = g.Where(g.Unsqueeze(g.Gather(middle, kept), [1]), made, rows)
    return splice(g, inputs, kept, sizes, g.CastLike(block, inputs["hidden_states"]))


@scoped("quota")
def _quota(
    g: Builder,
    size: ir.Value,
    total: ir.Value,
    present: ir.Value,
    count: ir.Value,
    *,
    slots: int,
    tokens: int,
    keep: int,
) -> ir.Value:
    """q [slots], float; `cluster_merge.quota` without its loop. Void where there are more clusters than `keep`."""
    singles = g.Max(0.0, g.Sub(float(keep), count))
    spare = g.Max(0.0, g.Sub(size, 1.0))
    shares = rounded_quotient(g, g.Mul(spare, singles), g.Max(1.0, g.Sub(float(tokens), count)))
    difference = g.Sub(singles, g.ReduceSum(shares, keepdims=0))
    room = g.And(present, g.Less(shares, spare))
    more = g.And(room, g.Less(_ahead(g, total, room, slots), difference))
    taken = g.And(present, g.Greater(shares, 0.0))
    less = g.And(taken, g.Less(_ahead(g, g.Neg(total), taken, slots, lower_first=False), g.Neg(difference)))
    return g.Sub(g.Add(shares, g.as_float(more)), g.as_float(less))


@scoped("ahead")
def _ahead(g: Builder, values: ir.Value, among: ir.Value, slots: int, *, lower_first: bool = True) -> ir.Value:
    """[slots], float: how many of the slots `among` have a smaller value; ties by index, lower ones first or last."""
    ties = np.tril(np.ones((slots, slots), bool), -1)
    ties = ties if lower_first else ties.T
    mine, other = g.Unsqueeze(values, [1]), g.Unsqueeze(values, [0])
    before = g.Or(g.Less(other, mine), g.And(g.Equal(other, mine), ties))
    return g.total(g.as_float(g.And(before, g.Unsqueeze(among, [0]))), 1, keepdims=False)
