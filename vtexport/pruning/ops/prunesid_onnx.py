"""PruneSID as standard ONNX ops of opset 20: the body of the function `VtxPruneSID` (steps as in docs/ops/prunesid.md).

Counts and ranks are whole numbers held in float32, exact below 2^24, so that cumulative sums and look-ups can be small
MatMuls, which every runtime has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import Builder, scoped
from vtexport.graphs.control_flow import choose, repeat_while
from vtexport.pruning.eigen import TINY, leading_eigenvectors, strong
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
    g: Builder,
    inputs: Mapping[str, ir.Value],
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
) -> dict[str, ir.Value]:
    """Writes the body for `features` and, where they rank, `scores`; the rest are the settings of `PruneSID`."""
    tokens, count, slot = sizes.tokens, groups, int(cls_slot)

    def select_image(features: ir.Value, *scores: ir.Value) -> dict[str, ir.Value]:
        """One image's results, with a first axis of 1; from features [1, rows, D] and scores [1, T]."""
        patches = patch_rows(g, features, tokens, cls_rows=slot)

        group_of, loading, residual = _group(g, patches, sizes, count, center)
        score = scores[0] if nms_score == "cls_attention" else loading

        # From here on tokens are in the order of group, then score: a group is a run of neighbours.
        _, best_first = g.TopK(score, [tokens], outputs=2, axis=1)
        key = g.Add(g.Mul(g.GatherElements(group_of, best_first, axis=1), tokens), np.arange(tokens)[None])
        _, places = g.TopK(key, [tokens], outputs=2, axis=1, largest=0)
        places = g.GatherElements(best_first, places, axis=1)
        group = g.as_float(g.GatherElements(group_of, places, axis=1))
        member = g.as_float(g.Equal(group, np.arange(count, dtype=np.float32)[:, None]))  # [K, T]
        group_sizes = g.Transpose(g.total(member, 1))  # [1, K]

        rows, square = _in_range(g, patches)
        rho, norms = _mean_cosine(g, rows, square, tokens, triangle=redundancy == "triangle")
        tau = g.Mul(g.Where(g.Greater(rho, PARALLEL), 1.0, rho), threshold_scale)
        # Parallel rows are all at cosine 1, which is above no limit from 1 on.
        limit = g.Add(tau, ALIKE)
        limit = g.Where(g.Less(limit, 1.0), g.Min(limit, PARALLEL), BEYOND)
        candidate = g.as_float(g.Greater(g.GatherElements(score, places, axis=1), 0.0))
        in_order = Sorted(tokens, places, group, candidate)
        survives = _suppress(g, rows, norms, limit, in_order, largest=g.ReduceMax(group_sizes, keepdims=0), count=count)
        survivors = g.MatMul(survives, g.Transpose(member))
        bounded = shares == "bounded"
        taken = _allocate(g, group_sizes, survivors, keep=sizes.keep, cls_slots=slot, count=count, bounded=bounded)

        chosen = _cut(g, survives, group, group_sizes, taken, tokens=tokens, count=count, keep=sizes.keep - slot)
        chosen = g.GatherElements(places, chosen, axis=1)
        if order == "raster":
            chosen = in_raster_order(g, chosen, sizes.keep - slot)
        return {
            "keep_indices": g.Concat(np.array([[-1]]), chosen, axis=1) if slot else chosen,
            "groups": group_of,
            "sizes": g.as_int(group_sizes),
            "survivors": g.as_int(survivors),
            "taken": g.as_int(taken),
            "rho": g.Squeeze(rho, [1]),
            "tau": g.Squeeze(tau, [1]),
            "residual": g.Squeeze(residual, [1]),
        }

    values = per_image(g, sizes.batch, list(inputs.values()), select_image)
    rows = g.Add(values["keep_indices"], slot)
    return {"kept_features": gather_rows(g, inputs["features"], rows), **values}


@scoped("groups")
def _group(g: Builder, patches: ir.Value, sizes: Sizes, count: int, center: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Step 1: groups [1, T] int64, the loadings [1, T] that decided them, the eigenvectors' residual [1, 1]."""
    y = g.Sigmoid(patches)
    y = g.Sub(y, g.ReduceMean(y, [1 if center == "token" else 0], keepdims=1))
    components = leading_eigenvectors(g, gram(g, y, sizes.tokens), tokens=sizes.tokens, count=count)
    is_there = strong(g, components.values, WEAKEST_GROUP, CENTRED * sizes.tokens * sizes.width)
    # In units of STEP. Where only signs and sizes of them count, they stay in these.
    loading = g.Round(g.Mul(g.Abs(components.vectors), g.Mul(1 / STEP, g.as_float(is_there))))
    groups, largest = g.ArgMax(loading, axis=1, keepdims=1), g.ReduceMax(loading, [1], keepdims=1)
    return g.Transpose(groups), g.Transpose(largest), components.residual


@scoped("in_range")
def _in_range(g: Builder, patches: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`patches` [T, D] within reach of float32's squares, and these squares [T, 1]."""

    def scaled(b: Builder) -> list[ir.Value]:
        scale = range_scale(b, patches)
        small = b.Mul(patches, scale)
        return [scale, b.total(b.Mul(small, small), 1)]

    square = g.total(g.Mul(patches, patches), 1)
    fits = squares_fit(g, square)

    def as_they_are(b: Builder) -> list[ir.Value]:
        # No Identity: tools remove it, and then the branch returns an outer value, which ONNX Runtime refuses
        one = b.as_float(fits)
        return [one, b.Mul(square, one)]

    scale, square = choose(g, fits, as_they_are, scaled, ["float32", "float32"])
    return g.Mul(patches, scale), square


@scoped("redundancy")
def _mean_cosine(
    g: Builder, patches: ir.Value, square: ir.Value, tokens: int, *, triangle: bool
) -> tuple[ir.Value, ir.Value]:
    """Step 2: the mean cosine [1, 1] over the pairs of different tokens, and the tokens' norms [T, 1].

    With `triangle` the sum over the upper triangle of the cosines, diagonal included, over all T² of them.

    The sum of all cosines is |sum of the unit vectors|²: cheaper than summing the matrix, and more exact in float32.
    """
    floored = g.Max(TINY, square)
    norms = g.Sqrt(floored)
    resultant = g.MatMul(g.Transpose(g.Reciprocal(norms)), patches)
    whole, diagonal = g.total(g.Mul(resultant, resultant), 1), g.total(g.Div(square, floored), 0)
    if triangle:
        return g.Div(g.Add(whole, diagonal), float(2 * tokens**2)), norms
    return g.Div(g.Sub(whole, diagonal), float(tokens * (tokens - 1))), norms


@dataclass(frozen=True)
class Sorted:
    """The tokens by group, then by descending score, each [1, T]: index, group, and whether the score is positive."""

    tokens: int
    order: ir.Value
    group: ir.Value
    candidate: ir.Value


@scoped("suppress")
def _suppress(
    g: Builder, patches: ir.Value, norms: ir.Value, limit: ir.Value, by: Sorted, *, largest: ir.Value, count: int
) -> ir.Value:
    """Step 3: [1, T] float in sorted order, 1 for NMS survivors. `largest` is the size of the largest group.

    A token survives if no survivor before it in its group is more similar to it than `limit`. Sweeping this rule over
    all tokens reaches its one fixed point, the greedy answer, after as many sweeps as the longest chain of
    suppressions.
    """
    size = min(by.tokens, max(SMALLEST_BLOCK, 2 * -(-by.tokens // count)))
    conflict, columns = _conflicts(g, patches, norms, limit, by, largest, size)

    def sweep(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        old = states[0]
        hits = b.Reshape(b.MatMul(conflict, b.Gather(b.Squeeze(old, [0]), columns)), [1, -1])
        new = b.Mul(by.candidate, b.as_float(b.Less(b.Slice(hits, [0], [by.tokens], [1]), 0.5)))
        return b.Greater(b.ReduceMax(b.Abs(b.Sub(new, old)), keepdims=0), 0.5), [new]

    return repeat_while(g, by.tokens, [by.candidate], ["float32"], sweep)[0]


@scoped("conflicts")
def _conflicts(
    g: Builder, patches: ir.Value, norms: ir.Value, limit: ir.Value, by: Sorted, largest: ir.Value, size: int
) -> tuple[ir.Value, ir.Value]:
    """[blocks, size, T'] float, 1 where the token of a column suppresses that of a row if it survives; the columns.

    Rows are blocks of `size` places in the sorted order. Only pairs of one group matter, and groups are runs of
    neighbours: every block is compared with itself, then with the one before it, and so on as far as the largest group
    can reach. `columns` [blocks, T', 1] are the places compared with; pairs never compared are 0.
    """
    blocks = -(-by.tokens // size)
    places = np.arange(blocks * size).reshape(blocks, size)
    order, group = g.Squeeze(by.order, [0]), g.Squeeze(by.group, [0])
    padded = np.minimum(places, by.tokens - 1)
    own = g.Gather(order, padded)
    rows, groups = g.Gather(patches, own), g.Gather(group, padded[:, :, None])
    limit = g.Mul(g.Gather(norms, own), limit)

    def compare(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
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

    nothing = g.Expand(0.0, [blocks, size, blocks * size])
    conflict, distance = repeat_while(g, blocks, [nothing, g.constant([0])], ["float32", "int64"], compare)
    # Column c of the first of n comparisons has come to place (n - 1) size + c.
    first = np.arange(blocks)[:, None] * size + np.arange(blocks * size)[None] + size
    columns = g.Max(0, g.Min(by.tokens - 1, g.Sub(first, distance)))
    return conflict, g.Unsqueeze(columns, [2])


@scoped("allocate")
def _allocate(
    g: Builder, sizes: ir.Value, survivors: ir.Value, *, keep: int, cls_slots: int, count: int, bounded: bool
) -> ir.Value:
    """Step 4: tokens to take from every group [B, K], float; `prunesid.allocate` without its loops."""
    floor = g.Min(float(bounded), sizes)
    start = g.Min(g.Min(5.0 * -(-keep // 64) if bounded else float(keep), sizes), survivors)
    # Widening: the capacity after 0, 1, ..., keep rounds; as many rounds are needed as capacities fall short.
    rounds = np.arange(keep + 1, dtype=np.float32)[None, None]
    capacity = g.total(g.Min(g.Add(g.Unsqueeze(start, [2]), rounds), g.Unsqueeze(sizes, [2])), 1, keepdims=False)
    needed = g.total(g.as_float(g.Less(capacity, float(keep))), 1)
    upper = g.Min(g.Add(start, needed), sizes)

    base = g.total(floor, 1)
    extra = g.Max(0.0, g.Sub(float(keep - cls_slots), base))
    # Shares of `extra` by cumulative survivors.
    cumulative = g.MatMul(survivors, np.triu(np.ones((count, count))))
    until = rounded_quotient(g, g.Mul(cumulative, extra), g.Max(1.0, g.total(survivors, 1)))
    share = g.MatMul(until, np.eye(count) - np.eye(count, k=1))  # differences of neighbours
    taken = g.Min(g.Add(floor, share), upper)

    # What the upper bounds cut off goes to the groups with room, those with more survivors first.
    missing = g.Sub(g.Add(extra, base), g.total(taken, 1))
    room = g.Sub(upper, taken)
    own, other = g.Unsqueeze(survivors, [2]), g.Unsqueeze(survivors, [1])
    lower_index = np.tril(np.ones((1, count, count), bool), -1)
    earlier = g.Or(g.Greater(other, own), g.And(g.Equal(other, own), lower_index))
    room_before = g.Squeeze(g.MatMul(g.as_float(earlier), g.Unsqueeze(room, [2])), [2])
    return g.Add(taken, g.Max(0.0, g.Min(room, g.Sub(missing, room_before))))


@scoped("cut")
def _cut(
    g: Builder,
    survives: ir.Value,
    group: ir.Value,
    sizes: ir.Value,
    taken: ir.Value,
    *,
    tokens: int,
    count: int,
    keep: int,
) -> ir.Value:
    """Step 5: the places [1, keep] int64 of the chosen patches in the order by group, then score."""
    place = np.arange(tokens, dtype=np.float32)[None]
    # Survivors before the others of their group.
    key = g.Add(g.Mul(float(tokens), g.Sub(g.Mul(2.0, group), survives)), place)
    _, ranked = g.TopK(key, [tokens], outputs=2, axis=1, largest=0)
    group_start = g.MatMul(sizes, np.triu(np.ones((count, count)), 1))
    limit = g.GatherElements(g.Add(group_start, taken), g.as_int(group), axis=1)  # sorting within groups keeps `group`
    beyond = g.as_float(g.GreaterOrEqual(place, limit))
    _, chosen = g.TopK(g.Add(place, g.Mul(float(tokens), beyond)), [keep], outputs=2, axis=1, largest=0)
    return g.GatherElements(ranked, chosen, axis=1)
