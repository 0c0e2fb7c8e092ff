"""VtxSVDPrune (SVD-Prune, arXiv 2604.11530): tokens of the largest statistical leverage on the leading directions.

The steps have the numbers of docs/ops/svdprune.md: 1 singular value decomposition of the tokens' features, 2 rank from
the share of energy, 3 leverage, 4 selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.ties import CENTRED, LEVERAGE, SHARE, WEAKEST
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

SMALLEST_SET = 4  # in mode leverage
EXACT_RANK = 64  # up to here the leading eigenvectors are promised to be exact


@dataclass(frozen=True, kw_only=True)
class SVDPrune(Op):
    """The tokens of largest leverage on the subspace that holds a given share of the features' variance.

    Reports (outputs of the op): rank [B] int64, energy [B] (share that the rank reaches); in mode leverage also count
    [B] int64, how many of the rows from the front are the set, and leverage [B], what they sum to.
    Intermediate values: leverages [B, T]; the reference adds eigenvalues [B, T] (squared singular values) and how far
    the selection is from being another one: rank_margin [B] (least distance of a cumulative energy from the
    threshold), gap_margin [B] (relative gap behind the rank), cut_margin [B] (leverage of the last token kept minus
    that of the best one dropped). The ONNX form adds residual [B]: the eigenvectors' worst residual over the largest
    eigenvalue.
    """

    op_type = "VtxSVDPrune"

    energy: float = setting(
        0.9, kind=float, above=0, about="share of the variance, at most 1, that the leading directions have to reach"
    )
    rank: int = setting(0, kind=int, minimum=0, about="fixed number of leading directions; 0 takes it from energy")
    rank_bound: int = setting(
        kind=int,
        minimum=1,
        about=f"largest rank that energy may ask for, since the op computes so many; default {EXACT_RANK}",
    )
    center: str = setting(
        "feature-mean",
        kind=str,
        choices=("none", "feature-mean"),
        about="whether each feature's mean over the tokens is taken off before; what then remains is the variance",
    )
    mode: str = setting(
        "budget",
        kind=str,
        choices=("budget", "leverage"),
        about="keep the budget, or of it only the smallest set whose summed leverage reaches leverage",
    )
    leverage: float = setting(
        0.5, kind=float, above=0, about="summed leverage, at most 1, at which the set of mode leverage is complete"
    )

    def reports(self) -> tuple[Tensor, ...]:
        always = Tensor("rank", "B", "int64"), Tensor("energy", "B")
        return (*always, Tensor("count", "B", "int64"), Tensor("leverage", "B")) if self.mode == "leverage" else always

    def diagnostics(self) -> tuple[Tensor, ...]:
        return Tensor("leverages", "BT"), Tensor("residual", "B")

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import gather_rows, integers

        features = inputs["features"]
        xp = array_namespace(features)
        images = [
            _select_image(xp, xp.astype(features[image, :, :], xp.float64), sizes.keep, self)
            for image in range(features.shape[0])
        ]
        rows = integers(xp, [chosen for chosen, _ in images], features)
        details = {name: xp.stack([each[name] for _, each in images]) for name in images[0][1]}
        return Selection(rows, gather_rows(xp, features, rows), details)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import gather_rows, per_image

        def select_image(features: ir.Value) -> dict[str, ir.Value]:
            return _emit_image(g, features, sizes=sizes, op=self)

        values = per_image(g, sizes.batch, [inputs["features"]], select_image)
        return {"kept_features": gather_rows(g, inputs["features"], values["keep_indices"]), **values}


def _select_image(xp: Any, patches: Array, keep: int, op: SVDPrune) -> tuple[list[int], dict[str, Array]]:
    """Patches to keep, in output order, for one image: `patches` [T, D] float64."""
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order, leading_eigenvectors, settled, strong

    tokens, bound = patches.shape[0], op.rank_bound

    # 1. F = U S Vᵀ by the eigenvectors U of F Fᵀ; its trace is the whole energy. The scale of F does not matter.
    largest = xp.max(xp.abs(patches))
    y = patches / xp.where(largest > 0, largest, xp.ones_like(largest))
    least = 0.0
    if op.center == "feature-mean":
        least = CENTRED * float(xp.sum(y * y))
        y = y - xp.mean(y, axis=0, keepdims=True)
    u, eigenvalues = leading_eigenvectors(xp, y @ y.T, bound)
    is_there = strong(xp, eigenvalues, WEAKEST, least)[:bound]

    # 2. The rank: the smallest whose share of the energy reaches the threshold, or the bound.
    whole = xp.sum(y * y)
    share = xp.clip(eigenvalues, min=0.0) / xp.where(whole > 0, whole, xp.ones_like(whole))
    reached = xp.cumulative_sum(share[:bound])
    rank = op.rank or min(bound, 1 + sum(below < op.energy - SHARE for below in reached.tolist()))
    rank = max(1, min(rank, int(xp.sum(xp.astype(is_there, xp.int64)))))

    # 3. Leverage of a token: its share in the leading directions. All together sum to 1.
    mass = xp.where(is_there, u * u, xp.zeros_like(u))
    mass = xp.sum(mass[:, :rank], axis=1)
    leverages = mass / rank

    # 4. The largest leverages in raster order; in mode leverage, those that complete the set come first.
    order = descending_order(xp, settled(xp, mass, LEVERAGE))
    ranked, summed = order.tolist(), xp.cumulative_sum(xp.take(leverages, order)).tolist()
    count = keep
    if op.mode == "leverage":
        needed = 1 + sum(below < op.leverage - SHARE for below in summed[: keep - 1])
        count = max(needed, min(SMALLEST_SET, keep))
    chosen = sorted(ranked[:count]) + sorted(ranked[count:keep])

    def number(value: float, dtype: Any = xp.float64) -> Array:
        return xp.asarray(value, dtype=dtype, device=device(patches))

    ordered = xp.take(leverages, order)
    details = {
        "rank": number(rank, xp.int64),
        "energy": reached[rank - 1],
        "leverages": leverages,
        "eigenvalues": eigenvalues,
        "rank_margin": xp.min(xp.abs(reached - op.energy)) if not op.rank else number(float("inf")),
        "gap_margin": share[rank - 1] - (share[rank] if rank < tokens else 0.0),
        "cut_margin": ordered[keep - 1] - ordered[keep] if keep < tokens else number(float("inf")),
    }
    if op.mode == "leverage":
        details |= {"count": number(count, xp.int64), "leverage": number(summed[count - 1])}
    return chosen, details


def _emit_image(g: Builder, features: ir.Value, *, sizes: Sizes, op: SVDPrune) -> dict[str, ir.Value]:
    """One image's results, with a first axis of 1, from features [1, T, D]; steps as in `_select_image`."""
    import numpy as np

    from vtexport.pruning.eigen import leading_eigenvectors, strong
    from vtexport.pruning.parts_onnx import in_raster_order, patch_rows

    tokens, keep, bound = sizes.tokens, sizes.keep, op.rank_bound

    # 1. Eigenvalues are shares of the energy, whatever the features' scale.
    patches = patch_rows(g, features, tokens, cls_rows=0)
    with g.scope("energy"):
        matrix, before_centring = _emit_energy(g, patches, tokens, op.center == "feature-mean")
    components = leading_eigenvectors(g, matrix, tokens=tokens, count=bound)
    is_there = strong(g, components.values, WEAKEST, g.Mul(before_centring, CENTRED))

    # 2. A component counts while those before it fall short of the threshold.
    share = g.Max(0.0, components.values)
    first = g.Less(np.arange(bound)[None], op.rank or 1)
    if not op.rank:
        before = g.MatMul(share, np.triu(np.ones((bound, bound)), 1))
        first = g.Or(first, g.Less(before, op.energy - SHARE))
    counts = g.as_float(g.And(first, is_there))  # [1, bound]
    rank = g.Max(1.0, g.total(counts, 1))

    # 3. NaN, which only NaN features can give, counts as no leverage.
    # One Newton-Schulz step more, because sums of squares show how far vectors are from orthonormal.
    eye, vectors = np.eye(bound), components.vectors
    vectors = g.Gemm(vectors, g.Gemm(vectors, vectors, eye, transA=1, alpha=-0.5, beta=1.5))
    mass = g.MatMul(counts, g.Transpose(g.Mul(vectors, vectors)))
    mass = g.Where(g.GreaterOrEqual(mass, 0.0), mass, 0.0)
    leverages = g.Div(mass, rank)

    # 4.
    _, chosen = g.TopK(g.Round(g.Mul(mass, 1 / LEVERAGE)), [keep], outputs=2, axis=1)
    found = {"rank": g.as_int(g.Squeeze(rank, [1])), "energy": g.Squeeze(g.total(g.Mul(share, counts), 1), [1])}
    if op.mode == "leverage":
        place, best = np.arange(keep)[None], g.GatherElements(leverages, chosen, axis=1)
        summed_before = g.MatMul(best, np.triu(np.ones((keep, keep)), 1))
        inside = g.Or(g.Less(summed_before, op.leverage - SHARE), place < min(SMALLEST_SET, keep))
        # Sums grow with the place, so the set is a prefix; rows behind it get keys beyond every index.
        key = g.Add(chosen, g.Mul(tokens, g.Sub(1, g.as_int(inside))))
        key = in_raster_order(g, key, keep)
        chosen = g.Sub(key, g.Mul(tokens, g.as_int(g.GreaterOrEqual(key, tokens))))
        weight = g.as_float(inside)
        found["count"] = g.as_int(g.Squeeze(g.total(weight, 1), [1]))
        found["leverage"] = g.Squeeze(g.total(g.Mul(best, weight), 1), [1])
    else:
        chosen = in_raster_order(g, chosen, keep)
    return {
        "keep_indices": chosen,
        **found,
        "leverages": leverages,
        "residual": g.Squeeze(components.residual, [1]),
    }


def _emit_energy(g: Builder, patches: ir.Value, tokens: int, centred: bool) -> tuple[ir.Value, ir.Value]:
    """The Gram matrix [T, T] over its trace, and the energy before the centring [1, 1] over the same; 0 without one."""
    import numpy as np

    from vtexport.graphs.control_flow import choose
    from vtexport.pruning.eigen import TINY
    from vtexport.pruning.parts_onnx import gram, range_scale
    from vtexport.pruning.ties import LONGEST, SHORTEST

    def products(b: Builder, rows: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """The Gram matrix, its trace, and the energy before the centring."""
        y = rows
        before: ir.Value | None = None
        if centred:
            before = b.total(b.total(b.Mul(rows, rows), 1), 0)
            y = b.Sub(rows, b.ReduceMean(rows, [0], keepdims=1))
        matrix = gram(b, y, tokens)
        trace = b.total(b.total(b.Mul(matrix, np.eye(tokens)), 1), 0)
        return matrix, trace, before

    def shares(b: Builder, matrix: ir.Value, trace: ir.Value, before: ir.Value | None) -> list[ir.Value]:
        floored = b.Max(TINY, trace)
        # No Identity of a constant: tools remove it, and then the branch returns an outer value
        return [b.Div(matrix, floored), b.Div(before, floored) if before is not None else b.Mul(floored, 0.0)]

    matrix, trace, before = products(g, patches)
    whole = trace if before is None else before
    fits = g.Squeeze(g.And(g.Greater(whole, SHORTEST), g.Less(whole, LONGEST)))
    found = choose(
        g,
        fits,
        lambda b: shares(b, matrix, trace, before),
        lambda b: shares(b, *products(b, b.Mul(patches, range_scale(b, patches)))),
        ["float32", "float32"],
        [(tokens, tokens), (1, 1)],
    )
    return found[0], found[1]
