"""Density-peak clustering with a limited neighbourhood, as array reference and as ONNX nodes.

Every point hangs on its nearest neighbour of higher density; the points far from any denser one are the cluster
centres, and every other point has the cluster of the point it hangs on (Rodriguez and Laio, Science 344, 2014). The
steps and their numbers are those of docs/ops/vitcop.md.

Two rules for equal densities. `strict=False`: a point of equal density counts as denser, both ways, so points may hang
on each other in a ring and reach no centre; their label is -1. A point without any denser neighbour hangs on point 0.
`strict=True`: of equal densities the lower index is the denser one, so there are no rings; a point without a denser
neighbour belongs to the nearest centre, and every point gets a cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vtexport.pruning.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

SMALLEST_SQUARE = 1e-8  # added to squared distances, as the released code of ViTCoP does
NO_DISTANCE = 3e38  # stands for "no denser neighbour" inside the graph, where an infinity may turn into NaN


@dataclass(frozen=True)
class PeakRules:
    """Rules of a clustering.

    Attributes:
        cutoff: d_c, the distance at which a neighbour counts 1/e.
        centers: C, the number of clusters.
        counts_itself: Whether a point's own term, 1, is in its density.
        strict: See the module's text.
    """

    cutoff: float
    centers: int
    counts_itself: bool = True
    strict: bool = False

    @property
    def decay(self) -> float:
        """1 / d_c², also where the square leaves the range of numbers."""
        return (1 / self.cutoff) * (1 / self.cutoff)


def density_peaks(xp: Any, points: Array, near: Array, rules: PeakRules) -> dict[str, Array]:
    """Clusters `points` [T, F] float64, of which only pairs in `near` [T, T] bool may hang on each other.

    Returns:
        labels [T] int64 (0 to C-1, or -1), centers [C] int64 by label, density [T] float32, delta [T] float64 (infinite
        without a denser neighbour), parent [T] int64; and how far the result is from being another one:
        density_margin, the least relative difference of unequal densities of near points; parent_margin, the least
        distance by which a parent is nearer than the next candidate; center_margin, the least relative difference
        between neighbours in the ranking of the first C + 1 centres, infinities apart.
    """
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order

    count = points.shape[0]
    index = xp.arange(count, device=device(points))
    itself = index[:, None] == index[None, :]
    infinite = xp.full((count, count), math.inf, dtype=xp.float64, device=device(points))

    # 1. Distances. The product of two equal rows need not be the same in both orders, so it is made symmetric.
    product = points @ points.T
    square = xp.sum(points * points, axis=1)
    square = square[:, None] + square[None, :] - (product + product.T)
    square = xp.where(square < 0, xp.zeros_like(square), square) + SMALLEST_SQUARE
    distance = xp.where(itself, xp.zeros_like(square), xp.sqrt(square))

    # 2. Densities, rounded to float32: there equal ones are equal, in the released code and in the graph.
    terms = xp.exp(-square * rules.decay)
    others = xp.sum(xp.where(itself, xp.zeros_like(terms), terms), axis=1)
    density = xp.astype(others + 1.0 if rules.counts_itself else others, xp.float32)

    # 3. Distance to the nearest denser neighbour.
    own, other = density[:, None], density[None, :]
    wins_ties = index[None, :] < index[:, None] if rules.strict else ~itself
    denser = (other > own) | ((other == own) & wins_ties)
    candidates = xp.where(denser & near, distance, infinite)
    delta, parent = xp.min(candidates, axis=1), xp.argmin(candidates, axis=1)
    hangs = xp.isfinite(delta)
    if rules.strict:  # the densest point of all is as far away as it can be
        densest = ~xp.any(denser, axis=1)
        delta = xp.where(densest, xp.max(distance, axis=1), delta)

    # 4. Centres.
    gamma = delta * xp.astype(density, xp.float64)
    gamma = xp.where(xp.isfinite(delta), gamma, xp.full_like(gamma, math.inf))  # where the density is 0 as well
    order = descending_order(xp, gamma)
    rank = descending_order(xp, -order)
    is_center = rank < rules.centers

    # 5. Labels, by going from point to parent until nothing changes.
    target = parent
    if rules.strict:
        target = xp.where(hangs, parent, xp.argmin(xp.where(is_center[None, :], distance, infinite), axis=1))
    target = xp.where(is_center, index, target)
    for _ in range(_doublings(count)):
        target = xp.take(target, target)
    number = xp.where(is_center, rank, xp.full_like(rank, -1))
    return {
        "labels": xp.take(number, target),
        "centers": order[: rules.centers],
        "density": density,
        "delta": delta,
        "parent": parent,
        **_margins(xp, density, near, candidates, xp.take(gamma, order[: rules.centers + 1])),
    }


def _margins(xp: Any, density: Array, near: Array, candidates: Array, ranked_gamma: Array) -> dict[str, Array]:
    """The margins that `density_peaks` returns, infinite where there is nothing to compare."""
    density = xp.astype(density, xp.float64)
    own, other = density[:, None], density[None, :]
    larger = xp.where(own > other, own, other)
    differences = (xp.abs(own - other) / xp.where(larger > 0, larger, xp.ones_like(larger)))[near & (own != other)]
    two = xp.sort(candidates, axis=1)[:, :2]
    two = two[xp.isfinite(two[:, -1]), :]
    gaps = two[:, -1] - two[:, 0] if candidates.shape[1] > 1 else two[:0, 0]
    ranked = ranked_gamma[xp.isfinite(ranked_gamma)]
    steps = (ranked[:-1] - ranked[1:]) / xp.where(ranked[:-1] > 0, ranked[:-1], xp.ones_like(ranked[:-1]))
    named = {"density_margin": differences, "parent_margin": gaps, "center_margin": steps}
    nothing = xp.full_like(density[:1], math.inf)
    return {name: xp.min(xp.concat([values, nothing])) for name, values in named.items()}


def emit_density_peaks(
    g: Builder, points: ir.Value, near: ir.Value, *, tokens: int, rules: PeakRules
) -> dict[str, ir.Value]:
    """`density_peaks` as nodes: from points [T, F] float32 and near [T, T] bool, the values with a first axis of 1.

    Returns:
        labels [1, T] int64, centers [1, C] int64, density and delta [1, T] float32, parent [1, T] int64.
    """
    index = np.arange(tokens)
    itself = g.Equal(index[:, None], index[None])

    # 1. Distances, of points moved to their mean: that takes nothing away from them but common length.
    with g.scope("distances"):
        points = g.Sub(points, g.ReduceMean(points, [0], keepdims=1))
        product = g.Gemm(points, points, transB=1)
        length = g.total(g.Mul(points, points), 1)  # ONNX Runtime's ReduceSumSquare is ten times less exact
        square = g.Sub(g.Add(length, g.Transpose(length)), g.Add(product, g.Transpose(product)))
        square = g.Add(g.Max(0.0, square), SMALLEST_SQUARE)
        distance = g.Where(itself, 0.0, g.Sqrt(square))

    # 2. Densities. A point's own term is added last, so that the sum is rounded once at its size.
    with g.scope("densities"):
        terms = g.Exp(g.Mul(square, -rules.decay))
        density = g.total(g.Where(itself, 0.0, terms), 1)  # [T, 1]
        if rules.counts_itself:
            density = g.Add(density, 1.0)

    # 3. Distance to the nearest denser neighbour.
    with g.scope("parents"):
        other = g.Transpose(density)
        if rules.strict:
            lower = g.Less(index[None], index[:, None])
            denser = g.Or(g.Greater(other, density), g.And(g.Equal(other, density), lower))
        else:
            denser = g.And(g.GreaterOrEqual(other, density), g.Not(itself))
        candidates = g.Where(g.And(denser, near), distance, NO_DISTANCE)
        delta = g.ReduceMin(candidates, [1], keepdims=1)  # [T, 1]
        parent = g.ArgMin(candidates, axis=1, keepdims=0)  # [T]
        hangs = g.Less(delta, NO_DISTANCE)
        if rules.strict:
            densest = g.Less(g.total(g.as_float(denser), 1), 0.5)
            delta = g.Where(densest, g.ReduceMax(distance, [1], keepdims=1), delta)

    # 4. Centres.
    with g.scope("centers"):
        far = g.Less(delta, NO_DISTANCE)
        gamma = g.Transpose(g.Where(far, g.Mul(delta, density), NO_DISTANCE))  # [1, T]
        _, order = g.TopK(gamma, [tokens], outputs=2, axis=1)
        _, rank = g.TopK(order, [tokens], outputs=2, axis=1, largest=0)  # the inverse of a permutation
        is_center = g.Less(rank, rules.centers)

    # 5. Labels: as many doublings as the longest way to a centre can need.
    with g.scope("labels"):
        target = parent
        if rules.strict:
            nearest = g.ArgMin(g.Where(is_center, distance, NO_DISTANCE), axis=1, keepdims=0)
            target = g.Where(g.Squeeze(hangs, [1]), parent, nearest)
        target = g.Where(g.Squeeze(is_center, [0]), index, target)
        for _ in range(_doublings(tokens)):
            target = g.Gather(target, target)
        number = g.Where(is_center, rank, -1)
    return {
        "labels": g.Gather(number, target, axis=1),
        "centers": g.Slice(order, [0], [rules.centers], [1]),
        "density": other,
        "delta": g.Transpose(g.Where(far, delta, math.inf)),
        "parent": g.Unsqueeze(parent, [0]),
    }


def _doublings(count: int) -> int:
    """The number of times that a map follows itself until every way of fewer than `count` steps is gone to its end."""
    return max(1, math.ceil(math.log2(count)))
