"""ViTCoP, stage I (arXiv 2601.17818): what the vision tower's CLS token looks at most stays; its clusters go along.

The paper prunes three times: coarsely behind the vision tower (stage I), inside the language model at a shallow layer,
where one merged token stands for what is left of every cluster (II), and again at a deep layer (III). Here is stage I:
the N patches of the largest attention from CLS, and for stage II their clusters (VIC, visual information clustering:
density peaks of the key projections, hanging together only within a radius of the image). The steps have the numbers of
docs/ops/vitcop.md. The defaults are those of the authors' code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.errors import UsageError
from vtexport.pruning.llm.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.llm.cluster_merge import ClusterMerge, ClusterMergeParameters
from vtexport.pruning.llm.key_norm_topk import KeyNormTopK
from vtexport.pruning.llm.step import LLMStep
from vtexport.pruning.method import Array, Method, Parameters, Schedule, Selection, Sizes, option
from vtexport.pruning.registry import register

if TYPE_CHECKING:
    from vtexport.pruning.density_peaks import PeakRules
    from vtexport.pruning.emit import Emitter

# The authors' presets keep .5, .4 and .3 of the patches in stage I with .18, .15 and .12 of those as clusters: a line.
SHARE_OF_NONE, SHARE_SLOPE = 0.03, 0.3
RATIOS, PRESETS = (0.3, 0.4, 0.5), (1 / 9, 2 / 9, 1 / 3)  # stage I's share of the patches, for which mean share
PRESET_WIDTH = 1e-3  # the presets are written with four digits
SHALLOW, DEEP = 2, 22  # layers of 32 before which stages 2 and 3 act


@dataclass(frozen=True)
class ViTCoPParameters(Parameters):
    """Options of ViTCoP; the defaults are the authors' LLaVA-1.5 settings."""

    stages: str = option(
        "all",
        kind=str,
        choices=("all", "1"),
        about="all, or the first alone: then keep counts the tokens that enter the language model",
    )
    clusters: bool = option(
        False, kind=bool, about="also give the cluster of every kept token, as output labels; reads the tower's keys"
    )
    clustering: str = option(
        "official",
        kind=str,
        choices=("official", "fixed"),
        about="equal densities hang on each other, tokens in such rings get no cluster (code), or the lower index wins",
    )
    cluster_share: float | None = option(
        None, kind=float, above=0, about="clusters per kept token c; default 0.03 + 0.3 keep / patches, as the presets"
    )
    cluster_count: int | None = option(
        None, kind=int, minimum=1, about="number of clusters; default cluster_share * keep, rounded down"
    )
    cutoff: float = option(8.0, kind=float, above=0, about="distance of keys d_c over which density falls to 1/e")
    radius: float = option(0.6, kind=float, above=0, about="how far tokens of a cluster may hang, in image sides")
    merge: str = option(
        "sum",
        kind=str,
        choices=("sum", "mean"),
        about="a merged token of stage 2: its middle token plus the mean of all (code), or the mean",
    )
    deep_positions: str = option(
        "official",
        kind=str,
        choices=("official", "original"),
        about="position ids behind stage 3: in prefill the places before it (code), or each token's own",
    )
    variant: str = option(
        "official", kind=str, choices=("official", "paper"), about="a token counts in its own density (code) or not"
    )


@register
class ViTCoP(Method):
    """The patches with the largest attention from CLS, in raster order, and on request the cluster of each.

    With `clusters`, the op's output labels [B, N] int64 (-1 for none), and intermediate values (`Selection.details`,
    and `diagnostics` in ONNX): centers [B, C] int64, density [B, N], delta [B, N] (infinite where no denser token is
    near), parent [B, N] int64; all count kept tokens, in their order.
    The reference adds how far the result is from being another one: score_margin [B] (score gap at the cut), and of the
    clustering density_margin, parent_margin, center_margin [B] (see `density_peaks`).
    """

    name = "vitcop"
    op_type = "VtxViTCoP"
    title = "ViTCoP: Accelerating Large Vision-Language Models via Visual and Textual Semantic Collaborative Pruning"
    arxiv = "2601.17818"
    acts = "between the vision tower and the projector (stage I) and inside the language model, before two layers"
    budget = "visual tokens per image and layer, the mean over the decoder's layers; stage I alone: those that enter it"
    positions = "contiguous"
    parameters = ViTCoPParameters
    needs_grid = True
    diagnostics = {  # noqa: RUF012
        "centers": ("INT64", "BC"),
        "density": ("FLOAT", "BN"),
        "delta": ("FLOAT", "BN"),
        "parent": ("INT64", "BN"),
    }

    def signals(self, parameters: ViTCoPParameters) -> tuple[str, ...]:
        return ("cls_attention", "keys") if parameters.clusters else ("cls_attention",)

    def further_outputs(self, parameters: ViTCoPParameters) -> Mapping[str, tuple[str, str]]:
        return {"labels": ("INT64", "BN")} if parameters.clusters else {}

    def takes_cls(self, parameters: ViTCoPParameters) -> bool:
        return False

    def resolve(
        self, parameters: ViTCoPParameters, *, grid: tuple[int, int], keep: int | None
    ) -> tuple[int, ViTCoPParameters]:
        tokens = grid[0] * grid[1]
        keep = self.check_keep(keep, largest=tokens, unit="patches")
        share, count = parameters.cluster_share, parameters.cluster_count
        if share is None:
            share = SHARE_OF_NONE + SHARE_SLOPE * keep / tokens if count is None else count / keep
        if count is None:
            count = max(1, int(share * keep))
        if share > 1 or count > keep:
            given = f"cluster_share={share:g}" if parameters.cluster_count is None else f"cluster_count={count}"
            raise UsageError(
                f"{given} is not allowed with keep={keep}; give a share up to 1, or a count from 1 to {keep}"
            )
        return keep, dataclasses.replace(parameters, cluster_share=share, cluster_count=count)

    def remarks(self, parameters: ViTCoPParameters, *, grid: tuple[int, int], keep: int) -> tuple[str, ...]:
        if parameters.stages == "all":
            return ()
        return (f"vitcop runs its stage I alone, so every layer sees {keep} visual tokens; leave stages out for all",)

    def schedule(
        self, parameters: ViTCoPParameters, *, grid: tuple[int, int], keep: int | None, layers: int
    ) -> Schedule:
        if parameters.stages == "1":
            return super().schedule(parameters, grid=grid, keep=keep, layers=layers)
        tokens = grid[0] * grid[1]
        at = scaled_layer(SHALLOW, layers), scaled_layer(DEEP, layers)
        check_layers(self.name, at, layers)

        def mean_of(budget: int) -> float | None:
            counts = _stage_counts(budget, tokens, at, layers)
            return counts and mean_tokens(counts[0], list(zip(at, counts[1:], strict=True)), layers)

        keep = check_budget(self.name, keep, mean_of, tokens)
        counts = _stage_counts(keep, tokens, at, layers)
        assert counts is not None
        first, second, third = counts
        _, resolved = self.resolve(dataclasses.replace(parameters, clusters=True), grid=grid, keep=first)
        merging = ClusterMergeParameters(clusters=resolved.cluster_count or 1, merge=parameters.merge)
        steps = (
            LLMStep(at[0], first, second, ClusterMerge(), parameters=merging),
            LLMStep(at[1], second, third, KeyNormTopK(), positions=parameters.deep_positions),
        )
        return Schedule(self, resolved, first, keep, steps, self.name)

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: ViTCoPParameters
    ) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import descending_order, gather_rows
        from vtexport.pruning.density_peaks import density_peaks

        xp = array_namespace(features)
        scores = xp.astype(signals["scores"], xp.float32)
        order = descending_order(xp, scores)
        kept = xp.sort(order[:, : sizes.keep], axis=1)
        details = {"score_margin": _score_margin(xp, scores, order, sizes.keep)}
        if parameters.clusters:
            keys = xp.reshape(signals["keys"], (*signals["keys"].shape[:2], -1))  # the heads side by side
            points = xp.astype(gather_rows(xp, keys, kept), xp.float64)
            rules = _rules(parameters)
            images = [
                density_peaks(xp, points[image, ...], _near(xp, kept[image, ...], sizes.grid, parameters.radius), rules)
                for image in range(sizes.batch)
            ]
            details |= {name: xp.stack([each[name] for each in images]) for name in images[0]}
        return Selection(kept, gather_rows(xp, features, kept), details)

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: ViTCoPParameters) -> dict[str, str]:
        from vtexport.pruning.parts_onnx import gather_rows, in_raster_order, per_image, without_nan

        e = emitter
        _, chosen = e.TopK(without_nan(e, "scores"), [sizes.keep], outputs=2, axis=1)
        kept = in_raster_order(e, chosen, sizes.keep)
        values = {"kept_features": gather_rows(e, "features", kept), "keep_indices": kept}
        if parameters.clusters:
            values |= per_image(
                e, sizes.batch, ["keys", kept], lambda *each: _cluster_image(e, *each, sizes=sizes, rules=parameters)
            )
        return values


def _stage_counts(keep: int, tokens: int, at: tuple[int, int], layers: int) -> tuple[int, int, int] | None:
    """T1, n_S and n_P of the stages for a mean of `keep` tokens over the layers, None where no rho gives it.

    The released formula with the model's own depth: of T1 = floor(rho T) tokens,
    n_S = round((L p / rho - S) / ((P - S) + (L - P) / 5) T1) and n_P = round(n_S / 5), with p = keep / T, steps before
    the layers S and P of L. The presets have a rho each; between them it is the smallest that leaves stages a token
    and stage 2 no more than there are, and n_S may move by a few to bring the mean nearer.
    """
    from vtexport.pruning.arrays import round_half_even

    share = keep / tokens
    shallow, deep = at
    for ratio, preset in zip(RATIOS, PRESETS, strict=True):
        first = math.floor(ratio * tokens)
        second = round((layers * share / ratio - shallow) / ((deep - shallow) + (layers - deep) / 5) * first)
        is_preset = abs(share - preset) < PRESET_WIDTH
        if not 3 <= second <= first or (not is_preset and any(abs(share - p) < PRESET_WIDTH for p in PRESETS)):
            continue

        def error(count: int, first: int = first) -> float:
            return abs(mean_tokens(first, [(shallow, count), (deep, round_half_even(count, 5))], layers) - keep)

        near = [each for each in range(second - 3, second + 4) if 3 <= each <= first]
        if not is_preset:
            second = min(near, key=lambda each: (error(each), abs(each - second)))
        return first, second, round_half_even(second, 5)
    return None


def _rules(parameters: ViTCoPParameters) -> PeakRules:
    from vtexport.pruning.density_peaks import PeakRules

    assert parameters.cluster_count is not None
    return PeakRules(
        cutoff=parameters.cutoff,
        centers=parameters.cluster_count,
        counts_itself=parameters.variant == "official",
        strict=parameters.clustering == "fixed",
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


def _cluster_image(e: Emitter, keys: str, kept: str, *, sizes: Sizes, rules: ViTCoPParameters) -> dict[str, str]:
    """One image's clustering from keys [1, T, H, K] and kept [1, N]; results with a first axis of 1."""
    from vtexport.pruning.density_peaks import emit_density_peaks
    from vtexport.pruning.parts_onnx import squared_offsets

    own = e.Squeeze(kept, [0])
    points = e.Gather(e.Reshape(keys, [sizes.tokens, sizes.heads * sizes.head_width]), own)
    scale, most = _reach(sizes.grid, rules.radius)
    near = e.LessOrEqual(squared_offsets(e, own, own, grid=sizes.grid, scale=scale), most)
    return emit_density_peaks(e, points, near, tokens=sizes.keep, rules=_rules(rules))
