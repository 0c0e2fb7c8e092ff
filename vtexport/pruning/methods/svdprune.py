"""SVD-Prune (arXiv 2604.11530): keep the tokens of the largest statistical leverage on the leading singular directions.

The steps have the numbers of docs/ops/svdprune.md: 1 singular value decomposition of the tokens' features, 2 rank from
the share of energy, 3 leverage, 4 selection. The authors have released no code, and only the abstract and descriptions
by others were at hand: energy, centring and feature space are parameters, and their defaults are unverified. Centring
follows from the abstract, which speaks of the dominant global variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.errors import UsageError
from vtexport.pruning.method import Array, Limit, Method, Parameters, Selection, Sizes, option
from vtexport.pruning.registry import register
from vtexport.pruning.ties import CENTRED, LEVERAGE, SHARE, WEAKEST

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter

SMALLEST_SET = 4  # in mode leverage
EXACT_RANK = 64  # up to here the leading eigenvectors are promised to be exact


@dataclass(frozen=True)
class SVDPruneParameters(Parameters):
    """Options of SVD-Prune."""

    energy: float = option(
        0.9, kind=float, above=0, about="share of the variance, at most 1, that the leading directions have to reach"
    )
    rank: int = option(0, kind=int, minimum=0, about="fixed number of leading directions; 0 takes it from energy")
    rank_bound: int | None = option(
        None,
        kind=int,
        minimum=1,
        about=f"largest rank that energy may ask for, since the op computes so many; default {EXACT_RANK}",
    )
    center: str = option(
        "feature-mean",
        kind=str,
        choices=("none", "feature-mean"),
        about="whether each feature's mean over the tokens is taken off before; what then remains is the variance",
    )
    space: str = option(
        "vision",
        kind=str,
        choices=("vision", "projected"),
        about="features before the projector or behind it",
    )
    mode: str = option(
        "budget",
        kind=str,
        choices=("budget", "leverage"),
        about="keep the budget, or of it only the smallest set whose summed leverage reaches leverage",
    )
    leverage: float = option(
        0.5, kind=float, above=0, about="summed leverage, at most 1, at which the set of mode leverage is complete"
    )


@register
class SVDPrune(Method):
    """The tokens of largest leverage on the subspace that holds a given share of the features' variance.

    Reports (outputs of the op): rank [B] int64, energy [B] (share that the rank reaches); in mode leverage also count
    [B] int64, how many of the rows from the front are the set, and leverage [B], what they sum to.
    Intermediate values: leverages [B, T]; the reference adds eigenvalues [B, T] (squared singular values) and how far
    the selection is from being another one: rank_margin [B] (least distance of a cumulative energy from the
    threshold), gap_margin [B] (relative gap behind the rank), cut_margin [B] (leverage of the last token kept minus
    that of the best one dropped). The ONNX form adds residual [B]: the eigenvectors' worst residual over the largest
    eigenvalue.
    """

    name = "svdprune"
    op_type = "VtxSVDPrune"
    title = "Beyond Attention Scores: SVD-Based Vision Token Pruning for Efficient Vision-Language Models"
    arxiv = "2604.11530"
    acts = "between the vision tower and the projector, or behind the projector with space projected"
    budget = "visual tokens per image; CLS is never kept. In mode leverage the most that an image may take"
    positions = "contiguous"
    parameters = SVDPruneParameters
    diagnostics = {  # noqa: RUF012
        "leverages": ("FLOAT", "BT"),
        "residual": ("FLOAT", "B"),
    }

    def signals(self, parameters: SVDPruneParameters) -> tuple[str, ...]:
        return ()

    def takes_cls(self, parameters: SVDPruneParameters) -> bool:
        return False

    def space(self, parameters: SVDPruneParameters) -> str:
        return parameters.space

    def reports(self, parameters: SVDPruneParameters) -> Mapping[str, str]:
        always = {"rank": "INT64", "energy": "FLOAT"}
        return always | ({"count": "INT64", "leverage": "FLOAT"} if parameters.mode == "leverage" else {})

    def limits(self, parameters: SVDPruneParameters, *, grid: tuple[int, int], keep: int) -> tuple[Limit, ...]:
        found = []
        if not parameters.rank:  # a fixed rank is the same for every image: `remarks` speaks of it, once
            assert parameters.rank_bound is not None
            few, most = _least_rank(parameters, keep), _most_rank(parameters, grid)
            found += [
                # A bound below that is the same for every image, too.
                Limit("rank", least=min(few, parameters.rank_bound), warning=_too_few(few, keep)),
                Limit("rank", most=most, warning=f"the directions span the whole space, so {_NOISE}"),
                Limit(
                    "energy",
                    least=parameters.energy * (1 - 1e-6),
                    warning=f"less than the {parameters.energy:g} asked for, which needs more than "
                    f"{parameters.rank_bound} directions; build with a larger rank_bound",
                ),
            ]
        if parameters.mode == "leverage":
            text = f"less than the {parameters.leverage:g} asked for: the set needs more tokens than keep allows"
            found.append(Limit("leverage", least=parameters.leverage * (1 - 1e-6), warning=text))
        return tuple(found)

    def resolve(
        self, parameters: SVDPruneParameters, *, grid: tuple[int, int], keep: int | None
    ) -> tuple[int, SVDPruneParameters]:
        tokens = grid[0] * grid[1]
        keep = self.check_keep(keep, largest=tokens, unit="patches")
        for name, share in (("energy", parameters.energy), ("leverage", parameters.leverage)):
            if share > 1:
                raise UsageError(f"{name}={share:g} is not allowed; give a number above 0, at most 1")
        if parameters.rank and parameters.energy != SVDPruneParameters.energy:
            raise UsageError(f"energy={parameters.energy:g} and rank={parameters.rank} exclude each other; give one")
        if parameters.rank and parameters.rank_bound not in (None, parameters.rank):
            raise UsageError(f"rank_bound={parameters.rank_bound} has no meaning for a fixed rank; leave it out")
        if parameters.mode == "budget" and parameters.leverage != SVDPruneParameters.leverage:
            raise UsageError(f"leverage={parameters.leverage:g} has no meaning in mode budget; give mode=leverage")
        bound = parameters.rank or parameters.rank_bound or _usual_bound(parameters, grid)
        if bound > tokens:
            name = "rank" if parameters.rank else "rank_bound"
            raise UsageError(f"{name}={bound} is not allowed; give a whole number from 1 to {tokens} (patches)")
        return keep, dataclasses.replace(parameters, rank_bound=bound)

    def remarks(self, parameters: SVDPruneParameters, *, grid: tuple[int, int], keep: int) -> tuple[str, ...]:
        assert parameters.rank_bound is not None
        found = ["no code of SVD-Prune's authors is public, so energy, centring and feature space are unverified"]
        if not parameters.rank:
            found.append(
                f"the graph computes {parameters.rank_bound} directions; where an image needs more for an energy of "
                f"{parameters.energy:g} it uses these and `vtexport run` warns (set rank_bound to change it)"
            )
        if parameters.center == "none":
            found.append(
                "without centring the first direction is about the features' common mean, which tells no tokens apart"
            )
        few = _least_rank(parameters, keep)
        if parameters.rank_bound < few:
            name = "rank" if parameters.rank else "rank_bound"
            found.append(f"{name} is {parameters.rank_bound}: {_too_few(few, keep)}")
        if parameters.rank > _most_rank(parameters, grid):
            found.append(f"at rank {parameters.rank} {_NOISE}; give another rank")
        if parameters.rank_bound > EXACT_RANK:
            found.append(f"beyond {EXACT_RANK} directions float32 does not promise the same tokens on every runtime")
        if parameters.mode == "leverage":
            found.append(f"images take between {min(SMALLEST_SET, keep)} and {keep} tokens each")
        return tuple(found)

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: SVDPruneParameters
    ) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import gather_rows, integers

        xp = array_namespace(features)
        images = [
            _select_image(xp, xp.astype(features[image, :, :], xp.float64), sizes.keep, parameters)
            for image in range(features.shape[0])
        ]
        rows = integers(xp, [chosen for chosen, _ in images], features)
        details = {name: xp.stack([each[name] for _, each in images]) for name in images[0][1]}
        return Selection(rows, gather_rows(xp, features, rows), details)

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: SVDPruneParameters) -> dict[str, str]:
        from vtexport.pruning.parts_onnx import gather_rows, per_image

        def select(features: str) -> dict[str, str]:
            return _emit_image(emitter, features, sizes=sizes, parameters=parameters)

        values = per_image(emitter, sizes.batch, ["features"], select)
        return {"kept_features": gather_rows(emitter, "features", values["keep_indices"]), **values}


_NOISE = "the ranking of the tokens is noise"


def _least_rank(parameters: SVDPruneParameters, keep: int) -> int:
    """The fewest directions on which `keep` tokens can all lie on different sides: k directions have 2^k of them.

    A single direction never suffices. Without centring all tokens are about on one side of the first.
    """
    return max(2, (keep - 1).bit_length() + int(parameters.center == "none"))


def _too_few(few: int, keep: int) -> str:
    return (
        f"it takes {few} directions for {keep} tokens to differ in the sides they are on; "
        "build with a larger energy, rank or rank_bound"
    )


def _usual_bound(parameters: SVDPruneParameters, grid: tuple[int, int]) -> int:
    """The most directions that are promised to be exact and can still rank the tokens."""
    return max(1, min(EXACT_RANK, _most_rank(parameters, grid)))


def _most_rank(parameters: SVDPruneParameters, grid: tuple[int, int]) -> int:
    """The largest rank at which leverages can differ. Centring takes one dimension from the tokens' space."""
    return grid[0] * grid[1] - 1 - int(parameters.center == "feature-mean")


def _select_image(
    xp: Any, patches: Array, keep: int, parameters: SVDPruneParameters
) -> tuple[list[int], dict[str, Array]]:
    """Patches to keep, in output order, for one image: `patches` [T, D] float64."""
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order, leading_eigenvectors, settled, strong

    assert parameters.rank_bound is not None
    tokens, bound = patches.shape[0], parameters.rank_bound

    # 1. F = U S Vᵀ by the eigenvectors U of F Fᵀ; its trace is the whole energy. The scale of F does not matter.
    largest = xp.max(xp.abs(patches))
    y = patches / xp.where(largest > 0, largest, xp.ones_like(largest))
    least = 0.0
    if parameters.center == "feature-mean":
        least = CENTRED * float(xp.sum(y * y))
        y = y - xp.mean(y, axis=0, keepdims=True)
    u, eigenvalues = leading_eigenvectors(xp, y @ y.T, bound)
    is_there = strong(xp, eigenvalues, WEAKEST, least)[:bound]

    # 2. The rank: the smallest whose share of the energy reaches the threshold, or the bound.
    whole = xp.sum(y * y)
    share = xp.clip(eigenvalues, min=0.0) / xp.where(whole > 0, whole, xp.ones_like(whole))
    reached = xp.cumulative_sum(share[:bound])
    rank = parameters.rank or min(bound, 1 + sum(below < parameters.energy - SHARE for below in reached.tolist()))
    rank = max(1, min(rank, int(xp.sum(xp.astype(is_there, xp.int64)))))

    # 3. Leverage of a token: its share in the leading directions. All together sum to 1.
    mass = xp.where(is_there, u * u, xp.zeros_like(u))
    mass = xp.sum(mass[:, :rank], axis=1)
    leverages = mass / rank

    # 4. The largest leverages in raster order; in mode leverage, those that complete the set come first.
    order = descending_order(xp, settled(xp, mass, LEVERAGE))
    ranked, summed = order.tolist(), xp.cumulative_sum(xp.take(leverages, order)).tolist()
    count = keep
    if parameters.mode == "leverage":
        needed = 1 + sum(below < parameters.leverage - SHARE for below in summed[: keep - 1])
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
        "rank_margin": xp.min(xp.abs(reached - parameters.energy)) if not parameters.rank else number(float("inf")),
        "gap_margin": share[rank - 1] - (share[rank] if rank < tokens else 0.0),
        "cut_margin": ordered[keep - 1] - ordered[keep] if keep < tokens else number(float("inf")),
    }
    if parameters.mode == "leverage":
        details |= {"count": number(count, xp.int64), "leverage": number(summed[count - 1])}
    return chosen, details


def _emit_image(e: Emitter, features: str, *, sizes: Sizes, parameters: SVDPruneParameters) -> dict[str, str]:
    """One image's results, with a first axis of 1, from features [1, T, D]; steps as in `_select_image`."""
    import numpy as np

    from vtexport.pruning.eigen import leading_eigenvectors, strong
    from vtexport.pruning.parts_onnx import in_raster_order, patch_rows

    assert parameters.rank_bound is not None
    tokens, keep, bound = sizes.tokens, sizes.keep, parameters.rank_bound

    # 1. Eigenvalues are shares of the energy, whatever the features' scale.
    patches = patch_rows(e, features, tokens, cls_rows=0)
    matrix, before_centring = _emit_energy(e, patches, tokens, parameters.center == "feature-mean")
    components = leading_eigenvectors(e, matrix, tokens=tokens, count=bound)
    is_there = strong(e, components.values, WEAKEST, e.Mul(before_centring, CENTRED))

    # 2. A component counts while those before it fall short of the threshold.
    share = e.Max(0.0, components.values)
    first = e.Less(np.arange(bound)[None], parameters.rank or 1)
    if not parameters.rank:
        before = e.MatMul(share, np.triu(np.ones((bound, bound)), 1))
        first = e.Or(first, e.Less(before, parameters.energy - SHARE))
    counts = e.as_float(e.And(first, is_there))  # [1, bound]
    rank = e.Max(1.0, e.total(counts, 1))

    # 3. NaN, which only NaN features can give, counts as no leverage.
    # One Newton-Schulz step more, because sums of squares show how far vectors are from orthonormal.
    eye, vectors = np.eye(bound), components.vectors
    vectors = e.Gemm(vectors, e.Gemm(vectors, vectors, eye, transA=1, alpha=-0.5, beta=1.5))
    mass = e.MatMul(counts, e.Transpose(e.Mul(vectors, vectors)))
    mass = e.Where(e.GreaterOrEqual(mass, 0.0), mass, 0.0)
    leverages = e.Div(mass, rank)

    # 4.
    _, chosen = e.TopK(e.Round(e.Mul(mass, 1 / LEVERAGE)), [keep], outputs=2, axis=1)
    found = {"rank": e.as_int(e.Squeeze(rank, [1])), "energy": e.Squeeze(e.total(e.Mul(share, counts), 1), [1])}
    if parameters.mode == "leverage":
        place, best = np.arange(keep)[None], e.GatherElements(leverages, chosen, axis=1)
        summed_before = e.MatMul(best, np.triu(np.ones((keep, keep)), 1))
        inside = e.Or(e.Less(summed_before, parameters.leverage - SHARE), place < min(SMALLEST_SET, keep))
        # Sums grow with the place, so the set is a prefix; rows behind it get keys beyond every index.
        key = e.Add(chosen, e.Mul(tokens, e.Sub(1, e.as_int(inside))))
        key = in_raster_order(e, key, keep)
        chosen = e.Sub(key, e.Mul(tokens, e.as_int(e.GreaterOrEqual(key, tokens))))
        weight = e.as_float(inside)
        found["count"] = e.as_int(e.Squeeze(e.total(weight, 1), [1]))
        found["leverage"] = e.Squeeze(e.total(e.Mul(best, weight), 1), [1])
    else:
        chosen = in_raster_order(e, chosen, keep)
    return {
        "keep_indices": chosen,
        **found,
        "leverages": leverages,
        "residual": e.Squeeze(components.residual, [1]),
    }


def _emit_energy(e: Emitter, patches: str, tokens: int, centred: bool) -> tuple[str, str]:
    """The Gram matrix [T, T] over its trace, and the energy before the centring [1, 1] over the same; 0 without one."""
    import numpy as np

    from vtexport.pruning.eigen import TINY
    from vtexport.pruning.emit import FLOAT
    from vtexport.pruning.parts_onnx import gram, range_scale
    from vtexport.pruning.ties import LONGEST, SHORTEST

    def products(b: Emitter, rows: str) -> tuple[str, str, str]:
        """The Gram matrix, its trace, and the energy before the centring."""
        y, before = rows, ""
        if centred:
            before = b.total(b.total(b.Mul(rows, rows), 1), 0)
            y = b.Sub(rows, b.ReduceMean(rows, [0], keepdims=1))
        matrix = gram(b, y, tokens)
        trace = b.total(b.total(b.Mul(matrix, np.eye(tokens)), 1), 0)
        return matrix, trace, before

    def shares(b: Emitter, matrix: str, trace: str, before: str) -> list[str]:
        floored = b.Max(TINY, trace)
        # No Identity of a constant: tools remove it, and then the branch returns an outer value
        return [b.Div(matrix, floored), b.Div(before, floored) if before else b.Mul(floored, 0.0)]

    matrix, trace, before = products(e, patches)
    whole = before or trace
    fits = e.Squeeze(e.And(e.Greater(whole, SHORTEST), e.Less(whole, LONGEST)))
    found = e.choose(
        fits,
        lambda b: shares(b, matrix, trace, before),
        lambda b: shares(b, *products(b, b.Mul(patches, range_scale(b, patches)))),
        [FLOAT, FLOAT],
        [(tokens, tokens), (1, 1)],
    )
    return found[0], found[1]
