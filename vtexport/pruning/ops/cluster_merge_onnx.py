"""VtxClusterMerge as standard ONNX ops of opset 20. Counts are whole numbers in float32, as in the other ops."""

from __future__ import annotations

import numpy as np

from vtexport.pruning.emit import Emitter
from vtexport.pruning.parts_onnx import rounded_quotient
from vtexport.pruning.splice_onnx import splice, visual_rows
from vtexport.pruning.types import Sizes


def emit_cluster_merge(e: Emitter, saliency: str, sizes: Sizes, *, clusters: int, mean: bool) -> dict[str, str]:
    """The body, from l [n] of the visual tokens."""
    tokens, keep, slots = sizes.tokens, sizes.keep, clusters + 1  # slot 0 is the label -1
    slot = e.Add(e.Max(-1, e.Min(clusters - 1, e.Squeeze("labels", [0]))), 1)
    member = e.as_float(e.Equal(slot, np.arange(slots)[:, None]))  # [slots, n]
    size = e.total(member, 1, keepdims=False)
    present = e.Greater(size, 0.0)
    count = e.ReduceSum(e.as_float(present), keepdims=0)
    total = e.Squeeze(e.MatMul(member, e.Unsqueeze(saliency, [1])), [1])

    shares = _quota(e, size, total, present, count, slots=slots, tokens=tokens, keep=keep)
    if slots > keep:  # more clusters than tokens to keep: then groups of clusters take the clusters' place
        crowded = e.Greater(count, float(keep))
        group = e.Min(float(keep - 1), _ahead(e, total, present, slots))
        own = e.Gather(group, slot)
        slot = e.Where(crowded, e.as_int(own), slot)
        shares = e.Where(crowded, 0.0, shares)
        member = e.as_float(e.Equal(slot, np.arange(slots)[:, None]))
        size = e.total(member, 1, keepdims=False)

    # A token is single if fewer members of its cluster than the quota are more important; lower index on ties.
    index = np.arange(tokens)
    earlier = np.tril(np.ones((tokens, tokens), bool), -1)
    same = e.Equal(e.Unsqueeze(slot, [1]), e.Unsqueeze(slot, [0]))
    mine, other = e.Unsqueeze(saliency, [1]), e.Unsqueeze(saliency, [0])
    before = e.Or(e.Less(other, mine), e.And(e.Equal(other, mine), earlier))
    rank = e.total(e.as_float(e.And(same, before)), 1, keepdims=False)
    single = e.Less(rank, e.Gather(shares, slot))

    # The middle one of the others stands for them.
    rest = e.Not(single)
    place = e.total(e.as_float(e.And(e.And(same, earlier), e.Unsqueeze(rest, [0]))), 1, keepdims=False)
    left = e.Sub(size, shares)
    middle = e.And(rest, e.Equal(place, e.Gather(e.Floor(e.Mul(left, 0.5)), slot)))
    key = e.Add(e.Mul(float(tokens), e.as_float(e.Not(e.Or(single, middle)))), index.astype(np.float32))
    _, kept = e.TopK(key, [keep], outputs=2, axis=0, largest=0)

    weights = e.Div(e.Mul(member, e.as_float(rest)), e.Max(1.0, e.Unsqueeze(left, [1])))
    visual = visual_rows(e, "hidden_states", sizes)
    average = e.Gather(e.MatMul(weights, visual), e.Gather(slot, kept))
    rows = e.Gather(visual, kept)
    made = average if mean else e.Add(rows, average)
    block = e.Where(e.Unsqueeze(e.Gather(middle, kept), [1]), made, rows)
    return splice(e, kept, sizes, e.CastLike(block, "hidden_states"))


def _quota(e: Emitter, size: str, total: str, present: str, count: str, *, slots: int, tokens: int, keep: int) -> str:
    """q [slots], float; `cluster_merge.quota` without its loop. Void where there are more clusters than `keep`."""
    singles = e.Max(0.0, e.Sub(float(keep), count))
    spare = e.Max(0.0, e.Sub(size, 1.0))
    shares = rounded_quotient(e, e.Mul(spare, singles), e.Max(1.0, e.Sub(float(tokens), count)))
    difference = e.Sub(singles, e.ReduceSum(shares, keepdims=0))
    room = e.And(present, e.Less(shares, spare))
    more = e.And(room, e.Less(_ahead(e, total, room, slots), difference))
    taken = e.And(present, e.Greater(shares, 0.0))
    less = e.And(taken, e.Less(_ahead(e, e.Neg(total), taken, slots, lower_first=False), e.Neg(difference)))
    return str(e.Sub(e.Add(shares, e.as_float(more)), e.as_float(less)))


def _ahead(e: Emitter, values: str, among: str, slots: int, *, lower_first: bool = True) -> str:
    """[slots], float: how many of the slots `among` have a smaller value; ties by index, lower ones first or last."""
    ties = np.tril(np.ones((slots, slots), bool), -1)
    ties = ties if lower_first else ties.T
    mine, other = e.Unsqueeze(values, [1]), e.Unsqueeze(values, [0])
    before = e.Or(e.Less(other, mine), e.And(e.Equal(other, mine), ties))
    return e.total(e.as_float(e.And(before, e.Unsqueeze(among, [0]))), 1, keepdims=False)
