"""PruneSID as standard ONNX ops of opset 20: the body of the function `VtxPruneSID` (steps as in docs/ops.md).

Counts and ranks are whole numbers held in float32, exact below 2^24, so that cumulative sums and look-ups can be small
MatMuls, which every runtime has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtexport.pruning.eigen import TINY, leading_eigenvectors
from vtexport.pruning.emit import FLOAT, Emitter
from vtexport.pruning.method import Sizes
from vtexport.pruning.prunesid import PruneSIDParameters


def emit_prunesid(e: Emitter, *, sizes: Sizes, parameters: PruneSIDParameters) -> dict[str, str]:
    """Write the body for "features" and "scores"; see `Method.emit`. `parameters` are resolved."""
    assert parameters.groups is not None
    assert parameters.threshold_scale is not None
    tokens, count, slot = sizes.tokens, parameters.groups, int(parameters.cls_slot)
    chosen_count = sizes.keep - slot
    features = e.as_float("features")
    patches = e.Slice(features, [1], [1 + tokens], [1]) if slot else features

    groups, loading, residual = _group(e, patches, tokens, count, parameters.center)
    score = "scores" if parameters.nms_score == "cls_attention" else loading
    cosine, rho = _redundancy(e, patches, tokens)
    tau = e.Mul(rho, parameters.threshold_scale)

    first = e.Mul(e.as_float(groups), float(tokens))  # [B, T]
    rank = e.as_float(e.ranks(score, tokens, largest=True))
    survives = _suppress(
        e, cosine, tau, first=first, key=e.Add(first, rank), positive=e.Greater(score, 0.0), tokens=tokens
    )

    member = e.as_float(e.Equal(e.Unsqueeze(groups, [1]), np.arange(count)[None, :, None]))  # [B, K, T]
    group_sizes = e.total(member, 2, keepdims=False)
    survivors = e.Squeeze(e.MatMul(member, e.Unsqueeze(survives, [2])), [2])
    taken = _allocate(e, group_sizes, survivors, keep=sizes.keep, cls_slots=slot, count=count)

    # A token's place in the list of all tokens: group after group, survivors first, by score.
    key = e.Add(e.Add(e.Mul(2.0, first), rank), e.Mul(e.Sub(1.0, survives), float(tokens)))
    chosen = _cut(e, key, group_sizes, taken, tokens=tokens, count=count, keep=chosen_count)
    if parameters.order == "raster":
        chosen, _ = e.TopK(chosen, [chosen_count], outputs=2, axis=1, largest=0)
    keep_indices = chosen
    if slot:
        cls = e.Sub(e.Mul(0, e.Slice(chosen, [0], [1], [1])), 1)
        keep_indices = e.Concat(cls, chosen, axis=1)
    rows = e.Add(keep_indices, 1) if slot else keep_indices
    return {
        "kept_features": e.GatherND("features", e.Unsqueeze(rows, [2]), batch_dims=1),
        "keep_indices": keep_indices,
        "groups": groups,
        "sizes": e.as_int(group_sizes),
        "survivors": e.as_int(survivors),
        "taken": e.as_int(taken),
        "rho": e.Squeeze(rho, [1, 2]),
        "tau": e.Squeeze(tau, [1, 2]),
        "residual": e.Squeeze(residual, [1, 2]),
    }


def _group(e: Emitter, patches: str, tokens: int, count: int, center: str) -> tuple[str, str, str]:
    """Step 1: groups [B, T] int64, the loadings [B, T] that decided them, the eigenvectors' residual [B, 1, 1]."""
    y = e.Sigmoid(patches)
    y = e.Sub(y, e.ReduceMean(y, [2 if center == "token" else 1], keepdims=1))
    components = leading_eigenvectors(e, e.MatMul(y, e.transpose(y)), tokens=tokens, count=count)
    loading = e.Abs(components.vectors)
    return e.ArgMax(loading, axis=2, keepdims=0), e.ReduceMax(loading, [2], keepdims=0), components.residual


def _redundancy(e: Emitter, patches: str, tokens: int) -> tuple[str, str]:
    """Step 2: cosines [B, T, T] and their mean over pairs of different tokens [B, 1, 1]."""
    square = e.total(e.Mul(patches, patches), 2)
    floored = e.Max(TINY, square)
    unit = e.Div(patches, e.Sqrt(floored))
    # The sum of all cosines is |sum of the unit vectors|²: cheaper than summing the matrix, and more exact in float32.
    resultant = e.MatMul(np.ones((1, tokens)), unit)
    pairs = e.Sub(e.total(e.Mul(resultant, resultant), 2), e.total(e.Div(square, floored), 1))
    return e.MatMul(unit, e.transpose(unit)), e.Div(pairs, float(tokens * (tokens - 1)))


def _suppress(e: Emitter, cosine: str, tau: str, *, first: str, key: str, positive: str, tokens: int) -> str:
    """Step 3: [B, T] float, 1 for NMS survivors.

    `key` = `first` + rank by score, `first` = group * T. A token survives if no survivor before it in its group is more
    similar to it than tau. Sweeping this rule over all tokens reaches its one fixed point, the greedy answer, after as
    many sweeps as the longest chain of suppressions.
    """
    other, own = e.Unsqueeze(key, [1]), e.Unsqueeze(key, [2])
    before = e.And(e.Less(other, own), e.GreaterOrEqual(other, e.Unsqueeze(first, [2])))
    conflict = e.as_float(e.And(before, e.Greater(cosine, tau)))
    candidate = e.as_float(e.Unsqueeze(positive, [2]))

    def sweep(b: Emitter, states: Sequence[str]) -> tuple[str, list[str]]:
        old = states[0]
        new = b.Mul(candidate, b.as_float(b.Less(b.MatMul(conflict, old), 0.5)))
        return b.any_true(b.Greater(b.Abs(b.Sub(new, old)), 0.5), 3), [new]

    return str(e.Squeeze(e.repeat_while(tokens, [candidate], [FLOAT], sweep)[0], [2]))


def _allocate(e: Emitter, sizes: str, survivors: str, *, keep: int, cls_slots: int, count: int) -> str:
    """Step 4: tokens to take from every group [B, K], float; `prunesid.allocate` without its loops."""
    floor = e.Min(1.0, sizes)
    start = e.Min(e.Min(5.0 * -(-keep // 64), sizes), survivors)
    # Widening: the capacity after 0, 1, ..., keep rounds; as many rounds are needed as capacities fall short.
    rounds = np.arange(keep + 1, dtype=np.float32)[None, None]
    capacity = e.total(e.Min(e.Add(e.Unsqueeze(start, [2]), rounds), e.Unsqueeze(sizes, [2])), 1, keepdims=False)
    needed = e.total(e.as_float(e.Less(capacity, float(keep))), 1)
    upper = e.Min(e.Add(start, needed), sizes)

    base = e.total(floor, 1)
    extra = e.Max(0.0, e.Sub(float(keep - cls_slots), base))
    # Shares of `extra` by cumulative survivors, rounded half to even on the exact quotient, in whole numbers.
    cumulative = e.MatMul(survivors, np.triu(np.ones((count, count))))
    product = e.as_int(e.Mul(cumulative, extra))
    all_survivors = e.as_int(e.Max(1.0, e.total(survivors, 1)))
    quotient = e.Div(product, all_survivors)
    twice_rest = e.Mul(2, e.Sub(product, e.Mul(quotient, all_survivors)))
    is_odd = e.Equal(e.Sub(quotient, e.Mul(2, e.Div(quotient, 2))), 1)
    up = e.Or(e.Greater(twice_rest, all_survivors), e.And(e.Equal(twice_rest, all_survivors), is_odd))
    until = e.Add(e.as_float(quotient), e.as_float(up))
    share = e.MatMul(until, np.eye(count) - np.eye(count, k=1))  # differences of neighbours
    taken = e.Min(e.Add(floor, share), upper)

    # What the upper bounds cut off goes to the groups with room, those with more survivors first.
    missing = e.Sub(e.Add(extra, base), e.total(taken, 1))
    room = e.Sub(upper, taken)
    own, other = e.Unsqueeze(survivors, [2]), e.Unsqueeze(survivors, [1])
    lower_index = np.tril(np.ones((1, count, count), bool), -1)
    earlier = e.Or(e.Greater(other, own), e.And(e.Equal(other, own), lower_index))
    room_before = e.Squeeze(e.MatMul(e.as_float(earlier), e.Unsqueeze(room, [2])), [2])
    return str(e.Add(taken, e.Max(0.0, e.Min(room, e.Sub(missing, room_before)))))


def _cut(e: Emitter, key: str, sizes: str, taken: str, *, tokens: int, count: int, keep: int) -> str:
    """Step 5: the `keep` chosen patches [B, keep] int64; `key` = group * 2T + place within the group's two halves."""
    ordered, patch = e.TopK(key, [tokens], outputs=2, axis=1, largest=0)
    group = e.as_int(e.Floor(e.Div(ordered, 2.0 * tokens)))
    group_start = e.MatMul(sizes, np.triu(np.ones((count, count)), 1))
    limit = e.GatherElements(e.Add(group_start, taken), group, axis=1)
    place = np.arange(tokens, dtype=np.float32)[None]
    beyond = e.as_float(e.GreaterOrEqual(place, limit))
    _, chosen = e.TopK(e.Add(place, e.Mul(float(tokens), beyond)), [keep], outputs=2, axis=1, largest=0)
    return str(e.GatherElements(patch, chosen, axis=1))
