"""PruneSID as standard ONNX ops of opset 20: the body of the function `VtxPruneSID` (steps as in docs/ops/prunesid.md).

Counts and ranks are whole numbers held in float32, exact below 2^24, so that cumulative sums and look-ups can be small
MatMuls, which every runtime has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtexport.pruning.eigen import TINY, leading_eigenvectors, strong
from vtexport.pruning.emit import FLOAT, INT64, Emitter
from vtexport.pruning.parts_onnx import (
    gather_rows,
    gram,
    in_raster_order,
    patch_rows,
    per_image,
    range_scale,
    rounded_quotient,
    squares_fit,
)
from vtexport.pruning.ties import ALIKE, CENTRED, PARALLEL, STEP, WEAKEST_GROUP
from vtexport.pruning.types import Sizes

BEYOND = 4.0  # no cosine exceeds it
SMALLEST_BLOCK = 48  # of tokens, in the NMS: below this, products cost more per number


def emit_prunesid(
    e: Emitter,
    sizes: Sizes,
    *,
    groups: int,
    threshold_scale: float,
    center: str,
    nms_score: str,
    order: str,
    cls_slot: bool,
    redundancy: str,
    shares: str,
) -> dict[str, str]:
    """Write the body for "features" and, where they rank, "scores"; the rest are the settings of `PruneSID`."""
    tokens, count, slot = sizes.tokens, groups, int(cls_slot)

    def select_image(features: str, scores: str = "") -> dict[str, str]:
        """One image's results, with a first axis of 1; from features [1, rows, D] and scores [1, T]."""
        patches = patch_rows(e, features, tokens, cls_rows=slot)

        group_of, loading, residual = _group(e, patches, sizes, count, center)
        score = scores if nms_score == "cls_attention" else loading

        # From here on tokens are in the order of group, then score: a group is a run of neighbours.
        _, best_first = e.TopK(score, [tokens], outputs=2, axis=1)
        key = e.Add(e.Mul(e.GatherElements(group_of, best_first, axis=1), tokens), np.arange(tokens)[None])
        _, places = e.TopK(key, [tokens], outputs=2, axis=1, largest=0)
        places = e.GatherElements(best_first, places, axis=1)
        group = e.as_float(e.GatherElements(group_of, places, axis=1))
        member = e.as_float(e.Equal(group, np.arange(count, dtype=np.float32)[:, None]))  # [K, T]
        group_sizes = e.Transpose(e.total(member, 1))  # [1, K]

        rows, square = _in_range(e, patches)
        rho, norms = _mean_cosine(e, rows, square, tokens, triangle=redundancy == "triangle")
        tau = e.Mul(e.Where(e.Greater(rho, PARALLEL), 1.0, rho), threshold_scale)
        # Parallel rows are all at cosine 1, which is above no limit from 1 on.
        limit = e.Add(tau, ALIKE)
        limit = e.Where(e.Less(limit, 1.0), e.Min(limit, PARALLEL), BEYOND)
        candidate = e.as_float(e.Greater(e.GatherElements(score, places, axis=1), 0.0))
        in_order = Sorted(tokens, places, group, candidate)
        survives = _suppress(e, rows, norms, limit, in_order, largest=e.ReduceMax(group_sizes, keepdims=0), count=count)
        survivors = e.MatMul(survives, e.Transpose(member))
        bounded = shares == "bounded"
        taken = _allocate(e, group_sizes, survivors, keep=sizes.keep, cls_slots=slot, count=count, bounded=bounded)

        chosen = _cut(e, survives, group, group_sizes, taken, tokens=tokens, count=count, keep=sizes.keep - slot)
        chosen = e.GatherElements(places, chosen, axis=1)
        if order == "raster":
            chosen = in_raster_order(e, chosen, sizes.keep - slot)
        return {
            "keep_indices": e.Concat(np.array([[-1]]), chosen, axis=1) if slot else chosen,
            "groups": group_of,
            "sizes": e.as_int(group_sizes),
            "survivors": e.as_int(survivors),
            "taken": e.as_int(taken),
            "rho": e.Squeeze(rho, [1]),
            "tau": e.Squeeze(tau, [1]),
            "residual": e.Squeeze(residual, [1]),
        }

    inputs = ["features", "scores"] if nms_score == "cls_attention" else ["features"]
    values = per_image(e, sizes.batch, inputs, select_image)
    rows = e.Add(values["keep_indices"], slot)
    return {"kept_features": gather_rows(e, "features", rows), **values}


def _group(e: Emitter, patches: str, sizes: Sizes, count: int, center: str) -> tuple[str, str, str]:
    """Step 1: groups [1, T] int64, the loadings [1, T] that decided them, the eigenvectors' residual [1, 1]."""
    y = e.Sigmoid(patches)
    y = e.Sub(y, e.ReduceMean(y, [1 if center == "token" else 0], keepdims=1))
    components = leading_eigenvectors(e, gram(e, y, sizes.tokens), tokens=sizes.tokens, count=count)
    is_there = strong(e, components.values, WEAKEST_GROUP, CENTRED * sizes.tokens * sizes.width)
    # In units of STEP. Where only signs and sizes of them count, they stay in these.
    loading = e.Round(e.Mul(e.Abs(components.vectors), e.Mul(1 / STEP, e.as_float(is_there))))
    groups, largest = e.ArgMax(loading, axis=1, keepdims=1), e.ReduceMax(loading, [1], keepdims=1)
    return e.Transpose(groups), e.Transpose(largest), components.residual


def _in_range(e: Emitter, patches: str) -> tuple[str, str]:
    """`patches` [T, D] within reach of float32's squares, and these squares [T, 1]."""

    def scaled(b: Emitter) -> list[str]:
        scale = range_scale(b, patches)
        small = b.Mul(patches, scale)
        return [scale, b.total(b.Mul(small, small), 1)]

    square = e.total(e.Mul(patches, patches), 1)
    fits = squares_fit(e, square)

    def as_they_are(b: Emitter) -> list[str]:
        # No Identity: tools remove it, and then the branch returns an outer value, which ONNX Runtime refuses
        one = b.as_float(fits)
        return [one, b.Mul(square, one)]

    scale, square = e.choose(fits, as_they_are, scaled, [FLOAT, FLOAT])
    return e.Mul(patches, scale), square


def _mean_cosine(e: Emitter, patches: str, square: str, tokens: int, *, triangle: bool) -> tuple[str, str]:
    """Step 2: the mean cosine [1, 1] over the pairs of different tokens, and the tokens' norms [T, 1].

    With `triangle` the sum over the upper triangle of the cosines, diagonal included, over all T² of them.

    The sum of all cosines is |sum of the unit vectors|²: cheaper than summing the matrix, and more exact in float32.
    """
    floored = e.Max(TINY, square)
    norms = e.Sqrt(floored)
    resultant = e.MatMul(e.Transpose(e.Reciprocal(norms)), patches)
    whole, diagonal = e.total(e.Mul(resultant, resultant), 1), e.total(e.Div(square, floored), 0)
    if triangle:
        return e.Div(e.Add(whole, diagonal), float(2 * tokens**2)), norms
    return e.Div(e.Sub(whole, diagonal), float(tokens * (tokens - 1))), norms


@dataclass(frozen=True)
class Sorted:
    """The tokens by group, then by descending score, each [1, T]: index, group, and whether the score is positive."""

    tokens: int
    order: str
    group: str
    candidate: str


def _suppress(e: Emitter, patches: str, norms: str, limit: str, by: Sorted, *, largest: str, count: int) -> str:
    """Step 3: [1, T] float in sorted order, 1 for NMS survivors. `largest` is the size of the largest group.

    A token survives if no survivor before it in its group is more similar to it than `limit`. Sweeping this rule over
    all tokens reaches its one fixed point, the greedy answer, after as many sweeps as the longest chain of
    suppressions.
    """
    size = min(by.tokens, max(SMALLEST_BLOCK, 2 * -(-by.tokens // count)))
    conflict, columns = _conflicts(e, patches, norms, limit, by, largest, size)

    def sweep(b: Emitter, states: Sequence[str]) -> tuple[str, list[str]]:
        old = states[0]
        hits = b.Reshape(b.MatMul(conflict, b.Gather(b.Squeeze(old, [0]), columns)), [1, -1])
        new = b.Mul(by.candidate, b.as_float(b.Less(b.Slice(hits, [0], [by.tokens], [1]), 0.5)))
        return b.Greater(b.ReduceMax(b.Abs(b.Sub(new, old)), keepdims=0), 0.5), [new]

    return e.repeat_while(by.tokens, [by.candidate], [FLOAT], sweep)[0]


def _conflicts(
    e: Emitter, patches: str, norms: str, limit: str, by: Sorted, largest: str, size: int
) -> tuple[str, str]:
    """[blocks, size, T'] float, 1 where the token of a column suppresses that of a row if it survives; the columns.

    Rows are blocks of `size` places in the sorted order. Only pairs of one group matter, and groups are runs of
    neighbours: every block is compared with itself, then with the one before it, and so on as far as the largest group
    can reach. `columns` [blocks, T', 1] are the places compared with; pairs never compared are 0.
    """
    blocks = -(-by.tokens // size)
    places = np.arange(blocks * size).reshape(blocks, size)
    order, group = e.Squeeze(by.order, [0]), e.Squeeze(by.group, [0])
    padded = np.minimum(places, by.tokens - 1)
    own = e.Gather(order, padded)
    rows, groups = e.Gather(patches, own), e.Gather(group, padded[:, :, None])
    limit = e.Mul(e.Gather(norms, own), limit)

    def compare(b: Emitter, states: Sequence[str]) -> tuple[str, list[str]]:
        old, distance = states  # in places
        place = b.Sub(places, distance)
        within = b.Max(0, b.Min(by.tokens - 1, place))
        other = b.Gather(order, within)
        similarity = b.MatMul(rows, b.Transpose(b.Gather(patches, other), perm=[0, 2, 1]))
        bound = b.Mul(limit, b.Transpose(b.Gather(norms, other), perm=[0, 2, 1]))
        same = b.Equal(groups, b.Unsqueeze(b.Gather(group, within), [1]))
        place = b.Unsqueeze(place, [1])
        earlier = b.And(b.Less(place, places[:, :, None]), b.GreaterOrEqual(place, 0))
        new = b.as_float(b.And(b.And(same, earlier), b.Greater(similarity, bound)))
        if blocks > 1:  # the newest in front
            new = b.Concat(new, b.Slice(old, [0], [(blocks - 1) * size], [2]), axis=2)
        return b.Greater(largest, b.Add(b.as_float(b.Squeeze(distance, [0])), 1.0)), [new, b.Add(distance, size)]

    nothing = e.Expand(0.0, [blocks, size, blocks * size])
    conflict, distance = e.repeat_while(blocks, [nothing, e.constant([0])], [FLOAT, INT64], compare)
    # Column c of the first of n comparisons has come to place (n - 1) size + c.
    first = np.arange(blocks)[:, None] * size + np.arange(blocks * size)[None] + size
    columns = e.Max(0, e.Min(by.tokens - 1, e.Sub(first, distance)))
    return conflict, e.Unsqueeze(columns, [2])


def _allocate(e: Emitter, sizes: str, survivors: str, *, keep: int, cls_slots: int, count: int, bounded: bool) -> str:
    """Step 4: tokens to take from every group [B, K], float; `prunesid.allocate` without its loops."""
    floor = e.Min(float(bounded), sizes)
    start = e.Min(e.Min(5.0 * -(-keep // 64) if bounded else float(keep), sizes), survivors)
    # Widening: the capacity after 0, 1, ..., keep rounds; as many rounds are needed as capacities fall short.
    rounds = np.arange(keep + 1, dtype=np.float32)[None, None]
    capacity = e.total(e.Min(e.Add(e.Unsqueeze(start, [2]), rounds), e.Unsqueeze(sizes, [2])), 1, keepdims=False)
    needed = e.total(e.as_float(e.Less(capacity, float(keep))), 1)
    upper = e.Min(e.Add(start, needed), sizes)

    base = e.total(floor, 1)
    extra = e.Max(0.0, e.Sub(float(keep - cls_slots), base))
    # Shares of `extra` by cumulative survivors.
    cumulative = e.MatMul(survivors, np.triu(np.ones((count, count))))
    until = rounded_quotient(e, e.Mul(cumulative, extra), e.Max(1.0, e.total(survivors, 1)))
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


def _cut(e: Emitter, survives: str, group: str, sizes: str, taken: str, *, tokens: int, count: int, keep: int) -> str:
    """Step 5: the places [1, keep] int64 of the chosen patches in the order by group, then score."""
    place = np.arange(tokens, dtype=np.float32)[None]
    # Survivors before the others of their group.
    key = e.Add(e.Mul(float(tokens), e.Sub(e.Mul(2.0, group), survives)), place)
    _, ranked = e.TopK(key, [tokens], outputs=2, axis=1, largest=0)
    group_start = e.MatMul(sizes, np.triu(np.ones((count, count)), 1))
    limit = e.GatherElements(e.Add(group_start, taken), e.as_int(group), axis=1)  # sorting within groups keeps `group`
    beyond = e.as_float(e.GreaterOrEqual(place, limit))
    _, chosen = e.TopK(e.Add(place, e.Mul(float(tokens), beyond)), [keep], outputs=2, axis=1, largest=0)
    return str(e.GatherElements(ranked, chosen, axis=1))
