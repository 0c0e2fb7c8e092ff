"""VtxNuwa (Nüwa, arXiv 2602.02951, stage 1): spatial anchors from every part of the image gather what is around them.

Separation cuts the image into regions of 2 x 2 patches, alignment takes the most salient patches of the regions (so the
kept ones are spread over the image), aggregation lets the weaker half of them, the collectors, take in what is similar
and near, while the stronger half, the pillars, stay as they are. The steps have the numbers of docs/ops/nuwa.md and
follow section 3 and Algorithm 1 of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

SIDE = 2  # of a region, patches
SMALL = 1e-8  # in the denominator of the released code


@dataclass(frozen=True, kw_only=True)
class Nuwa(Op):
    """The most salient patches of 2 x 2 regions in raster order; the weaker ones take in what is similar and near.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX): pillar_threshold [B], the least value that
    makes a kept token a pillar.
    The reference adds how far the selection is from being another one, in units of the salience: region_margin,
    global_margin [B] (gaps at the cuts inside the regions and over all candidates), and pillar_margin [B] (gap between
    the weakest pillar and the strongest collector, in units of what pillars are chosen by).
    """

    op_type = "VtxNuwa"
    merges = True
    needs_grid = True

    top_n: int = setting(
        kind=int, minimum=1, about="candidates of a region of 2 x 2 patches, up to 4; default as few as suffice"
    )
    distance: float = setting(
        kind=float,
        above=0,
        about="squared reach of aggregation, in patches; default 280, paper (0.26 of the largest distance) squared",
    )
    pillar_quantile: float = setting(
        kind=float,
        minimum=0,
        about="share of the kept tokens below the pillars, up to 1; default 0.55, paper 0.75",
    )
    variant: str = setting(
        "official",
        kind=str,
        choices=("official", "paper"),
        about="salience, pillars and stage 2 by attention (code), or by key norms and likeness to the text (paper)",
    )

    def signals(self) -> tuple[str, ...]:
        if self.variant == "paper":
            return "cls_attention", "keys", "similarity_features"
        return "cls_attention", "similarity_features"

    def diagnostics(self) -> tuple[Tensor, ...]:
        return (Tensor("pillar_threshold", "B"),)

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        xp = array_namespace(inputs["features"])
        images = [
            _select_image(xp, {name: each[image, ...] for name, each in inputs.items()}, sizes, self)
            for image in range(sizes.batch)
        ]
        kept, rows, merged, details = ([each[part] for each in images] for part in range(4))
        stacked = {name: xp.stack([each[name] for each in details]) for name in details[0]}
        return Selection(xp.stack(kept), xp.stack(rows), stacked, xp.stack(merged))

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import per_image

        names = ("features", "scores", "similarity_features", *(["keys"] if self.variant == "paper" else []))
        read = [inputs[name] for name in names]
        return per_image(g, sizes.batch, read, lambda *each: _emit_image(g, *each, sizes=sizes, op=self))


def candidates(grid: tuple[int, int], top_n: int) -> int:
    """Patches that the regions of a grid offer at `top_n` each; at an odd edge a region is only partly there."""
    lengths = [[SIDE] * (side // SIDE) + [1] * (side % SIDE) for side in grid]
    return sum(min(top_n, down * across) for down in lengths[0] for across in lengths[1])


def collectors(quantile: float, keep: int) -> int:
    """The number of `keep` different values below their quantile, linearly interpolated: its rank, rounded up.

    The thousandth takes up what a quantile loses as an attribute, which is float32.
    """
    return max(0, math.ceil(quantile * (keep - 1) - 1e-3))


def _select_image(
    xp: Any, inputs: Mapping[str, Array], sizes: Sizes, op: Nuwa
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Indices [N], rows [N, D], merged [N] and details of one image: features [T, D] and its signals."""
    from vtexport.pruning.arrays import descending_order

    features = inputs["features"]
    scores = xp.astype(xp.astype(inputs["scores"], xp.float32), xp.float64)
    salience = pillar_by = scores
    if op.variant == "paper":
        keys = xp.astype(xp.reshape(inputs["keys"], (sizes.tokens, -1)), xp.float64)
        pillar_by = xp.sqrt(xp.sum(keys * keys, axis=1))
        salience = scores * pillar_by

    # 1. Separation, 2. alignment.
    candidate, region_margin = _best_of_regions(xp, salience, sizes.grid, op.top_n)
    offered = xp.where(candidate, salience, xp.full_like(salience, -math.inf))
    order = descending_order(xp, offered)
    kept = xp.sort(order[: sizes.keep])
    ranked = xp.take(offered, order)
    global_margin = (
        ranked[sizes.keep - 1] - ranked[sizes.keep] if sizes.keep < sizes.tokens else xp.full_like(ranked[0], math.inf)
    )

    # 3. Pillars and collectors.
    below = collectors(op.pillar_quantile, sizes.keep)
    values = xp.take(pillar_by, kept)
    ascending = xp.sort(values)
    threshold = ascending[below]
    merged = values < threshold
    pillar_margin = threshold - ascending[below - 1] if below else xp.full_like(threshold, math.inf)

    # 4. Aggregation.
    rows = xp.take(features, kept, axis=0)
    gathering = kept[merged]
    if gathering.shape[0]:
        similar = xp.astype(inputs["similarity_features"], xp.float64)
        gathered = _aggregate(xp, xp.astype(features, xp.float64), similar, gathering, sizes.grid, op)
        rows[merged] = xp.astype(gathered, features.dtype)
    margins = {"region_margin": region_margin, "global_margin": global_margin, "pillar_margin": pillar_margin}
    details = {"pillar_threshold": threshold, **margins}
    return xp.astype(kept, xp.int64), rows, merged, details


def _best_of_regions(xp: Any, salience: Array, grid: tuple[int, int], top_n: int) -> tuple[Array, Array]:
    """[T] bool, the top_n of every region, and the least gap at a region's cut. What an odd grid lacks comes last."""
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order

    rows, columns = grid
    down, across = -(-rows // SIDE), -(-columns // SIDE)
    whole = xp.full((down * SIDE, across * SIDE), -math.inf, dtype=xp.float64, device=device(salience))
    whole[:rows, :columns] = xp.reshape(salience, grid)
    regions = xp.reshape(whole, (down, SIDE, across, SIDE))
    regions = xp.reshape(xp.permute_dims(regions, (0, 2, 1, 3)), (down * across, SIDE**2))
    order = descending_order(xp, regions)
    taken = descending_order(xp, -order) < top_n  # by rank
    margin = xp.full_like(salience[0], math.inf)
    if top_n < SIDE**2:
        ranked = -xp.sort(-regions, axis=1)
        cut = xp.isfinite(ranked[:, top_n])
        gaps = (ranked[:, top_n - 1])[cut] - (ranked[:, top_n])[cut]
        margin = xp.min(xp.concat([gaps, xp.reshape(margin, (1,))]))
    taken = xp.permute_dims(xp.reshape(taken, (down, across, SIDE, SIDE)), (0, 2, 1, 3))
    taken = xp.reshape(taken, (down * SIDE, across * SIDE))
    return xp.reshape(taken[:rows, :columns], (-1,)), margin


def _aggregate(xp: Any, features: Array, similar: Array, rows: Array, grid: tuple[int, int], op: Nuwa) -> Array:
    """[M, D]: what the collectors `rows` [M] make of all features [T, D], by similarity features [T, D]."""
    from array_api_compat import device

    from vtexport.pruning.arrays import in_range, squared_offsets, unit_rows

    every = xp.arange(features.shape[0], device=device(features))
    unit = unit_rows(xp, in_range(xp, similar))
    cosine = xp.take(unit, rows, axis=0) @ unit.T
    offsets = xp.astype(squared_offsets(xp, rows, every, grid[1]), xp.float64)
    reach = xp.sqrt(offsets / op.distance)
    zero = xp.zeros_like(cosine)
    proximity = xp.where(reach < 1, 1 - reach, zero)
    itself = rows[:, None] == every[None, :]
    weights = xp.where(itself, zero + 1, xp.where(cosine > 0, cosine, zero) * proximity)
    weights = weights / (xp.sum(weights, axis=1, keepdims=True) + SMALL)
    if op.variant == "official":
        weights = xp.where(itself, zero + 1, weights)
    return weights @ features


def _emit_image(
    g: Builder,
    features: ir.Value,
    scores: ir.Value,
    similar: ir.Value,
    keys: ir.Value | None = None,
    *,
    sizes: Sizes,
    op: Nuwa,
) -> dict[str, ir.Value]:
    """One image's results, with a first axis of 1; the inputs have one too."""
    from vtexport.pruning.parts_onnx import gather_rows, in_raster_order, range_scale, row_norms, without_nan

    keep = sizes.keep
    salience = pillar_by = scores
    if op.variant == "paper":
        flat = g.Reshape(keys, [sizes.tokens, sizes.heads * sizes.head_dim])
        pillar_by = g.Transpose(row_norms(g, flat))
        # Only their order counts, and small products would lose theirs.
        salience = g.Mul(g.Mul(scores, range_scale(g, scores)), g.Mul(pillar_by, range_scale(g, pillar_by)))
    salience, pillar_by = without_nan(g, salience), without_nan(g, pillar_by)

    # 1. Separation, 2. alignment.
    with g.scope("regions"):
        candidate = _emit_best_of_regions(g, salience, sizes.grid, op.top_n)
    _, chosen = g.TopK(g.Where(candidate, salience, -math.inf), [keep], outputs=2, axis=1)
    kept = in_raster_order(g, chosen, keep)
    rows = gather_rows(g, features, kept)

    # 3. Pillars and collectors: whoever is below the threshold is among the `below` last in the order.
    below = collectors(op.pillar_quantile, keep)
    values = g.GatherElements(pillar_by, kept, axis=1)
    ranked, order = g.TopK(values, [keep], outputs=2, axis=1)
    threshold = g.Slice(ranked, [keep - 1 - below], [keep - below], [1])
    merged = g.Less(values, threshold)

    # 4. Aggregation.
    if below:
        last = g.Slice(order, [keep - below], [keep], [1])
        gathering = g.Squeeze(g.GatherElements(kept, last, axis=1), [0])
        with g.scope("aggregate"):
            gathered = _emit_aggregate(g, features, similar, gathering, sizes.grid, op)
        _, place = g.TopK(order, [keep], outputs=2, axis=1, largest=0)  # of every kept token in the order
        own = g.Max(0, g.Sub(place, keep - below))
        gathered = g.Gather(g.CastLike(gathered, features), own, axis=0)
        rows = g.Where(g.Unsqueeze(merged, [2]), gathered, rows)
    return {
        "kept_features": rows,
        "keep_indices": kept,
        "merged": merged,
        "pillar_threshold": g.Squeeze(threshold, [1]),
    }


def _emit_best_of_regions(g: Builder, salience: ir.Value, grid: tuple[int, int], top_n: int) -> ir.Value:
    """[1, T] bool, the top_n of every region."""
    import numpy as np

    rows, columns = grid
    down, across = -(-rows // SIDE), -(-columns // SIDE)
    whole = g.Reshape(salience, [rows, columns])
    if rows % SIDE or columns % SIDE:
        whole = g.Pad(whole, [0, 0, rows % SIDE, columns % SIDE], -math.inf)
    regions = g.Transpose(g.Reshape(whole, [down, SIDE, across, SIDE]), perm=[0, 2, 1, 3])
    own = g.Reshape(regions, [down * across, SIDE**2, 1])
    other = g.Reshape(regions, [down * across, 1, SIDE**2])
    lower = np.tril(np.ones((SIDE**2, SIDE**2), bool), -1)
    better = g.Or(g.Greater(other, own), g.And(g.Equal(other, own), lower))
    rank = g.total(g.as_float(better), 2, keepdims=False)
    taken = g.Reshape(g.as_float(g.Less(rank, top_n - 0.5)), [down, across, SIDE, SIDE])
    taken = g.Reshape(g.Transpose(taken, perm=[0, 2, 1, 3]), [down * SIDE, across * SIDE])
    if rows % SIDE or columns % SIDE:
        taken = g.Slice(taken, [0, 0], [rows, columns], [0, 1])
    return g.Greater(g.Reshape(taken, [1, rows * columns]), 0.5)


def _emit_aggregate(
    g: Builder, features: ir.Value, similar: ir.Value, rows: ir.Value, grid: tuple[int, int], op: Nuwa
) -> ir.Value:
    """[M, D] float32: what the collectors `rows` [M] make of all features [1, T, D]."""
    import numpy as np

    from vtexport.pruning.parts_onnx import cosine_rows, squared_offsets

    unit = cosine_rows(g, g.Squeeze(similar, [0]))
    cosine = g.Gemm(g.Gather(unit, rows), unit, transB=1)
    offsets = g.as_float(squared_offsets(g, rows, None, grid=grid))
    reach = g.Sqrt(g.Mul(offsets, 1 / op.distance))
    proximity = g.Relu(g.Sub(1.0, reach))
    itself = g.Equal(g.Unsqueeze(rows, [1]), np.arange(grid[0] * grid[1])[None])
    weights = g.Where(itself, 1.0, g.Mul(g.Relu(cosine), proximity))
    weights = g.Div(weights, g.Add(g.total(weights, 1), SMALL))
    if op.variant == "official":
        weights = g.Where(itself, 1.0, weights)
    return g.Gemm(weights, g.as_float(g.Squeeze(features, [0])))
