"""VtxViTCoP (ViTCoP, arXiv 2601.17818, stage I): what the vision tower's CLS token looks at most, with its clusters.

The N patches of the largest attention from CLS, and for stage II their clusters (VIC, visual information clustering:
density peaks of the key projections, hanging together only within a radius of the image). The steps have the numbers of
docs/ops/vitcop.md.
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
    from vtexport.pruning.density_peaks import PeakRules


@dataclass(frozen=True, kw_only=True)
class ViTCoP(Op):
    """The patches with the largest attention from CLS, in raster order, and on request the cluster of each.

    With `clusters`, the op's output labels [B, N] int64 (-1 for none), and intermediate values (`Selection.details`,
    and `diagnostics` in ONNX): centers [B, C] int64, density [B, N], delta [B, N] (infinite where no denser token is
    near), parent [B, N] int64; all count kept tokens, in their order.
    The reference adds how far the result is from being another one: score_margin [B] (score gap at the cut), and of the
    clustering density_margin, parent_margin, center_margin [B] (see `density_peaks`).
    """

    op_type = "VtxViTCoP"
    needs_grid = True

    clusters: bool = setting(
        False, kind=bool, about="also give the cluster of every kept token, as output labels; reads the tower's keys"
    )
    clustering: str = setting(
        "official",
        kind=str,
        choices=("official", "fixed"),
        about="equal densities hang on each other, tokens in such rings get no cluster (code), or the lower index wins",
    )
    cluster_count: int = setting(
        kind=int, minimum=1, about="number of clusters; default cluster_share * keep, rounded down"
    )
    cutoff: float = setting(8.0, kind=float, above=0, about="distance of keys d_c over which density falls to 1/e")
    radius: float = setting(0.6, kind=float, above=0, about="how far tokens of a cluster may hang, in image sides")
    variant: str = setting(
        "official", kind=str, choices=("official", "paper"), about="a token counts in its own density (code) or not"
    )

    def signals(self) -> tuple[str, ...]:
        return ("cls_attention", "keys") if self.clusters else ("cls_attention",)

    def further_outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("labels", "BN", "int64"),) if self.clusters else ()

    def diagnostics(self) -> tuple[Tensor, ...]:
        kept = Tensor("density", "BN"), Tensor("delta", "BN"), Tensor("parent", "BN", "int64")
        return (Tensor("centers", "BC", "int64"), *kept)

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import descending_order, gather_rows
        from vtexport.pruning.density_peaks import density_peaks

        features = inputs["features"]
        xp = array_namespace(features)
        scores = xp.astype(inputs["scores"], xp.float32)
        order = descending_order(xp, scores)
        kept = xp.sort(order[:, : sizes.keep], axis=1)
        details = {"score_margin": _score_margin(xp, scores, order, sizes.keep)}
        if self.clusters:
            keys = xp.reshape(inputs["keys"], (*inputs["keys"].shape[:2], -1))  # the heads side by side
            points = xp.astype(gather_rows(xp, keys, kept), xp.float64)
            rules = _rules(self)
            images = [
                density_peaks(xp, points[image, ...], _near(xp, kept[image, ...], sizes.grid, self.radius), rules)
                for image in range(sizes.batch)
            ]
            details |= {name: xp.stack([each[name] for each in images]) for name in images[0]}
        return Selection(kept, gather_rows(xp, features, kept), details)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import gather_rows, in_raster_order, per_image, without_nan

        _, chosen = g.TopK(without_nan(g, inputs["scores"]), [sizes.keep], outputs=2, axis=1)
        kept = in_raster_order(g, chosen, sizes.keep)
        values = {"kept_features": gather_rows(g, inputs["features"], kept), "keep_indices": kept}
        if self.clusters:
            with g.scope("clusters"):
                values |= per_image(
                    g, sizes.batch, [inputs["keys"], kept], lambda *each: _cluster_image(g, *each, sizes=sizes, op=self)
                )
        return values


def _rules(op: ViTCoP) -> PeakRules:
    from vtexport.pruning.density_peaks import PeakRules

    return PeakRules(
        cutoff=op.cutoff,
        centers=op.cluster_count,
        counts_itself=op.variant == "official",
        strict=op.clustering == "fixed",
    )


def _score_margin(xp: Any, scores: Array, order: Array, keep: int) -> Array:
    """[B] float64: the last kept score minus the first dropped one, infinite where none is dropped."""
    ranked = xp.astype(xp.stack([xp.take(each, rank) for each, rank in zip(scores, order, strict=True)]), xp.float64)
    if keep == ranked.shape[1]:
        return xp.full_like(ranked[:, 0], math.inf)
    return ranked[:, keep - 1] - ranked[:, keep]


def _reach(grid: tuple[int, int], radius: float) -> tuple[tuple[int, int], int]:
    """Factors that make steps down and across whole parts of the image's side, and the largest square within `radius`.

    Whole numbers, so that pairs at the very radius are in it for every implementation.
    """
    rows, columns = grid
    common = math.gcd(rows, columns)
    scale = columns // common, rows // common
    radius = min(radius, 2.0)  # more than an image's diagonal, and no number too large to square
    return scale, math.floor((radius * rows * columns / common) ** 2 * (1 + 1e-9))


def _near(xp: Any, kept: Array, grid: tuple[int, int], radius: float) -> Array:
    """[N, N] bool: which kept patches of one image lie within `radius` of each other."""
    from vtexport.pruning.arrays import squared_offsets

    scale, most = _reach(grid, radius)
    return squared_offsets(xp, kept, kept, grid[1], scale) <= most


def _cluster_image(g: Builder, keys: ir.Value, kept: ir.Value, *, sizes: Sizes, op: ViTCoP) -> dict[str, ir.Value]:
    """One image's clustering from keys [1, T, H, K] and kept [1, N]; results with a first axis of 1."""
    from vtexport.pruning.density_peaks import emit_density_peaks
    from vtexport.pruning.parts_onnx import squared_offsets

    own = g.Squeeze(kept, [0])
    points = g.Gather(g.Reshape(keys, [sizes.tokens, sizes.heads * sizes.head_dim]), own)
    scale, most = _reach(sizes.grid, op.radius)
    near = g.LessOrEqual(squared_offsets(g, own, own, grid=sizes.grid, scale=scale), most)
    return emit_density_peaks(g, points, near, tokens=sizes.keep, rules=_rules(op))
