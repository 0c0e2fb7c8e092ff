"""Nüwa, stage 1 (arXiv 2602.02951): spatial anchors from every part of the image, which gather what is around them.

Separation cuts the image into regions of 2 x 2 patches, alignment takes the most salient patches of the regions (so the
kept ones are spread over the image), aggregation lets the weaker half of them, the collectors, take in what is similar
and near, while the stronger half, the pillars, stay as they are. All keep the position ids of their places. Stage 2
prunes again inside the language model. The steps have the numbers of docs/ops/nuwa.md and follow section 3 and
Algorithm 1 of the paper; the defaults are those of the authors' LLaVA-1.5 code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.errors import UsageError
from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.llm.step import LLMStep
from vtexport.pruning.llm.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.method import Array, Method, Parameters, Schedule, Selection, Sizes, option
from vtexport.pruning.registry import register

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter

SIDE = 2  # of a region, patches
DISTANCE, PILLAR_QUANTILE = 280.0, 0.55
PAPER_REACH, PAPER_PILLAR_QUANTILE = 0.26, 0.75  # of the largest distance on the grid; of the key norms
STAGE_2 = 16  # the layer of 32 before which stage 2 acts
FIRST_SHARE = 1.75  # of the budget, in the layers before it: 112 for 64, and 16 behind it
SMALL = 1e-8  # in the denominator of the released code


@dataclass(frozen=True)
class NuwaParameters(Parameters):
    """Options of Nüwa; the defaults are the authors' LLaVA-1.5 settings."""

    stages: str = option(
        "all",
        kind=str,
        choices=("all", "1"),
        about="both, or the first alone: then keep counts the tokens that enter the language model",
    )
    top_n: int | None = option(
        None, kind=int, minimum=1, about="candidates of a region of 2 x 2 patches, up to 4; default as few as suffice"
    )
    distance: float | None = option(
        None,
        kind=float,
        above=0,
        about="squared reach of aggregation, in patches; default 280, paper (0.26 of the largest distance) squared",
    )
    pillar_quantile: float | None = option(
        None,
        kind=float,
        minimum=0,
        about="share of the kept tokens below the pillars, up to 1; default 0.55, paper 0.75",
    )
    variant: str = option(
        "official",
        kind=str,
        choices=("official", "paper"),
        about="salience, pillars and stage 2 by attention (code), or by key norms and likeness to the text (paper)",
    )


@register
class Nuwa(Method):
    """The most salient patches of 2 x 2 regions in raster order; the weaker ones take in what is similar and near.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX): pillar_threshold [B], the least value that
    makes a kept token a pillar.
    The reference adds how far the selection is from being another one, in units of the salience: region_margin,
    global_margin [B] (gaps at the cuts inside the regions and over all candidates), and pillar_margin [B] (gap between
    the weakest pillar and the strongest collector, in units of what pillars are chosen by).
    """

    name = "nuwa"
    op_type = "VtxNuwa"
    title = "Nüwa: Mending the Spatial Integrity Torn by VLM Token Pruning"
    arxiv = "2602.02951"
    acts = "between the vision tower and the projector (stage 1) and inside the language model, before one layer"
    budget = "visual tokens per image and layer, the mean over the decoder's layers; stage 1 alone: those that enter it"
    positions = "original"
    merges = True
    needs_grid = True
    parameters = NuwaParameters
    diagnostics = {"pillar_threshold": ("FLOAT", "B")}  # noqa: RUF012

    def signals(self, parameters: NuwaParameters) -> tuple[str, ...]:
        if parameters.variant == "paper":
            return "cls_attention", "keys", "similarity_features"
        return "cls_attention", "similarity_features"

    def takes_cls(self, parameters: NuwaParameters) -> bool:
        return False

    def resolve(
        self, parameters: NuwaParameters, *, grid: tuple[int, int], keep: int | None
    ) -> tuple[int, NuwaParameters]:
        keep = self.check_keep(keep, largest=grid[0] * grid[1], unit="patches")
        paper = parameters.variant == "paper"
        fewest = next(count for count in range(1, SIDE**2 + 1) if candidates(grid, count) >= keep)
        top_n = fewest if parameters.top_n is None else parameters.top_n
        if not fewest <= top_n <= SIDE**2:
            raise UsageError(
                f"top_n={top_n} is not allowed with keep={keep} on {grid[0]} x {grid[1]} patches; "
                f"give a whole number from {fewest} to {SIDE**2}"
            )
        quantile = parameters.pillar_quantile
        if quantile is None:
            quantile = PAPER_PILLAR_QUANTILE if paper else PILLAR_QUANTILE
        if quantile > 1:
            raise UsageError(f"pillar_quantile={quantile:g} is not allowed; give a number from 0 to 1")
        distance = parameters.distance
        if distance is None:
            largest = (grid[0] - 1) ** 2 + (grid[1] - 1) ** 2
            distance = PAPER_REACH**2 * max(1, largest) if paper else DISTANCE
        return keep, dataclasses.replace(parameters, top_n=top_n, distance=distance, pillar_quantile=quantile)

    def remarks(self, parameters: NuwaParameters, *, grid: tuple[int, int], keep: int) -> tuple[str, ...]:
        if parameters.stages == "all":
            return ()
        return (f"nuwa runs its stage 1 alone, so every layer sees {keep} visual tokens; leave stages out for both",)

    def schedule(self, parameters: NuwaParameters, *, grid: tuple[int, int], keep: int | None, layers: int) -> Schedule:
        if parameters.stages == "1":
            return super().schedule(parameters, grid=grid, keep=keep, layers=layers)
        tokens, at = grid[0] * grid[1], scaled_layer(STAGE_2, layers)
        check_layers(self.name, [at], layers)

        def mean_of(budget: int) -> float | None:
            counts = _stage_counts(budget, tokens, at, layers)
            return counts and mean_tokens(counts[0], [(at, counts[1])], layers)

        keep = check_budget(self.name, keep, mean_of, tokens)
        counts = _stage_counts(keep, tokens, at, layers)
        assert counts is not None
        first, second = counts
        _, resolved = self.resolve(parameters, grid=grid, keep=first)
        op = TextSimilarityTopK() if parameters.variant == "paper" else AttentionTopK()
        step = LLMStep(at, first, second, op)
        return Schedule(self, resolved, first, keep, (step,), self.name)

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: NuwaParameters
    ) -> Selection:
        from array_api_compat import array_namespace

        xp = array_namespace(features)
        images = [
            _select_image(xp, features[image, ...], {n: s[image, ...] for n, s in signals.items()}, sizes, parameters)
            for image in range(sizes.batch)
        ]
        kept, rows, merged, details = ([each[part] for each in images] for part in range(4))
        stacked = {name: xp.stack([each[name] for each in details]) for name in details[0]}
        return Selection(xp.stack(kept), xp.stack(rows), stacked, xp.stack(merged))

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: NuwaParameters) -> dict[str, str]:
        from vtexport.pruning.parts_onnx import per_image

        e = emitter
        inputs = ["features", "scores", "similarity_features", *(["keys"] if parameters.variant == "paper" else [])]
        return per_image(
            e, sizes.batch, inputs, lambda *each: _emit_image(e, *each, sizes=sizes, parameters=parameters)
        )


def _stage_counts(keep: int, tokens: int, at: int, layers: int) -> tuple[int, int] | None:
    """Tokens behind stage 1 and behind stage 2, which acts before layer `at`; None where stage 1 would need too many.

    Stage 1 keeps 1.75 N; stage 2 makes the mean N, and is left one token at least.
    """
    if FIRST_SHARE * keep > tokens:
        return None
    about = min(round(FIRST_SHARE * keep), (layers * keep - (layers - at)) // at)

    def second(first: int) -> int:
        return min(first, max(1, round((layers * keep - at * first) / (layers - at))))

    def error(first: int) -> tuple[float, int]:
        return abs(mean_tokens(first, [(at, second(first))], layers) - keep), abs(first - about)

    first = min(range(max(1, about - 3), min(tokens, about + 3) + 1), key=error)
    return first, second(first)


def candidates(grid: tuple[int, int], top_n: int) -> int:
    """How many patches the regions of a grid offer at `top_n` each; at an odd edge a region is only partly there."""
    lengths = [[SIDE] * (side // SIDE) + [1] * (side % SIDE) for side in grid]
    return sum(min(top_n, down * across) for down in lengths[0] for across in lengths[1])


def collectors(quantile: float, keep: int) -> int:
    """How many of `keep` different values lie below their quantile, linearly interpolated: its rank, rounded up.

    The thousandth takes up what a quantile loses as an attribute, which is float32.
    """
    return max(0, math.ceil(quantile * (keep - 1) - 1e-3))


def _select_image(
    xp: Any, features: Array, signals: Mapping[str, Array], sizes: Sizes, parameters: NuwaParameters
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Indices [N], rows [N, D], merged [N] and details of one image: features [T, D] and its signals."""
    from vtexport.pruning.arrays import descending_order

    assert parameters.top_n is not None
    assert parameters.pillar_quantile is not None
    scores = xp.astype(xp.astype(signals["scores"], xp.float32), xp.float64)
    salience = pillar_by = scores
    if parameters.variant == "paper":
        keys = xp.astype(xp.reshape(signals["keys"], (sizes.tokens, -1)), xp.float64)
        pillar_by = xp.sqrt(xp.sum(keys * keys, axis=1))
        salience = scores * pillar_by

    # 1. Separation, 2. alignment.
    candidate, region_margin = _best_of_regions(xp, salience, sizes.grid, parameters.top_n)
    offered = xp.where(candidate, salience, xp.full_like(salience, -math.inf))
    order = descending_order(xp, offered)
    kept = xp.sort(order[: sizes.keep])
    ranked = xp.take(offered, order)
    global_margin = (
        ranked[sizes.keep - 1] - ranked[sizes.keep] if sizes.keep < sizes.tokens else xp.full_like(ranked[0], math.inf)
    )

    # 3. Pillars and collectors.
    below = collectors(parameters.pillar_quantile, sizes.keep)
    values = xp.take(pillar_by, kept)
    ascending = xp.sort(values)
    threshold = ascending[below]
    merged = values < threshold
    pillar_margin = threshold - ascending[below - 1] if below else xp.full_like(threshold, math.inf)

    # 4. Aggregation.
    rows = xp.take(features, kept, axis=0)
    gathering = kept[merged]
    if gathering.shape[0]:
        similar = xp.astype(signals["similarity_features"], xp.float64)
        gathered = _aggregate(xp, xp.astype(features, xp.float64), similar, gathering, sizes.grid, parameters)
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


def _aggregate(
    xp: Any, features: Array, similar: Array, rows: Array, grid: tuple[int, int], parameters: NuwaParameters
) -> Array:
    """[M, D]: what the collectors `rows` [M] make of all features [T, D], by similarity features [T, D]."""
    from array_api_compat import device

    from vtexport.pruning.arrays import in_range, squared_offsets, unit_rows

    assert parameters.distance is not None
    every = xp.arange(features.shape[0], device=device(features))
    unit = unit_rows(xp, in_range(xp, similar))
    cosine = xp.take(unit, rows, axis=0) @ unit.T
    offsets = xp.astype(squared_offsets(xp, rows, every, grid[1]), xp.float64)
    reach = xp.sqrt(offsets / parameters.distance)
    zero = xp.zeros_like(cosine)
    proximity = xp.where(reach < 1, 1 - reach, zero)
    itself = rows[:, None] == every[None, :]
    weights = xp.where(itself, zero + 1, xp.where(cosine > 0, cosine, zero) * proximity)
    weights = weights / (xp.sum(weights, axis=1, keepdims=True) + SMALL)
    if parameters.variant == "official":
        weights = xp.where(itself, zero + 1, weights)
    return weights @ features


def _emit_image(
    e: Emitter,
    features: str,
    scores: str,
    similar: str,
    keys: str = "",
    *,
    sizes: Sizes,
    parameters: NuwaParameters,
) -> dict[str, str]:
    """One image's results, with a first axis of 1; the inputs have one too."""
    from vtexport.pruning.parts_onnx import gather_rows, in_raster_order, range_scale, row_norms, without_nan

    assert parameters.top_n is not None
    assert parameters.pillar_quantile is not None
    keep = sizes.keep
    salience = pillar_by = scores
    if parameters.variant == "paper":
        flat = e.Reshape(keys, [sizes.tokens, sizes.heads * sizes.head_width])
        pillar_by = e.Transpose(row_norms(e, flat))
        # Only their order counts, and small products would lose theirs.
        salience = e.Mul(e.Mul(scores, range_scale(e, scores)), e.Mul(pillar_by, range_scale(e, pillar_by)))
    salience, pillar_by = without_nan(e, salience), without_nan(e, pillar_by)

    # 1. Separation, 2. alignment.
    candidate = _emit_best_of_regions(e, salience, sizes.grid, parameters.top_n)
    _, chosen = e.TopK(e.Where(candidate, salience, -math.inf), [keep], outputs=2, axis=1)
    kept = in_raster_order(e, chosen, keep)
    rows = gather_rows(e, features, kept)

    # 3. Pillars and collectors: whoever is below the threshold is among the `below` last in the order.
    below = collectors(parameters.pillar_quantile, keep)
    values = e.GatherElements(pillar_by, kept, axis=1)
    ranked, order = e.TopK(values, [keep], outputs=2, axis=1)
    threshold = e.Slice(ranked, [keep - 1 - below], [keep - below], [1])
    merged = e.Less(values, threshold)

    # 4. Aggregation.
    if below:
        last = e.Slice(order, [keep - below], [keep], [1])
        gathering = e.Squeeze(e.GatherElements(kept, last, axis=1), [0])
        gathered = _emit_aggregate(e, features, similar, gathering, sizes.grid, parameters)
        _, place = e.TopK(order, [keep], outputs=2, axis=1, largest=0)  # of every kept token in the order
        own = e.Max(0, e.Sub(place, keep - below))
        gathered = e.Gather(e.CastLike(gathered, features), own, axis=0)
        rows = e.Where(e.Unsqueeze(merged, [2]), gathered, rows)
    return {
        "kept_features": rows,
        "keep_indices": kept,
        "merged": merged,
        "pillar_threshold": e.Squeeze(threshold, [1]),
    }


def _emit_best_of_regions(e: Emitter, salience: str, grid: tuple[int, int], top_n: int) -> str:
    """[1, T] bool, the top_n of every region."""
    import numpy as np

    rows, columns = grid
    down, across = -(-rows // SIDE), -(-columns // SIDE)
    whole = e.Reshape(salience, [rows, columns])
    if rows % SIDE or columns % SIDE:
        whole = e.Pad(whole, [0, 0, rows % SIDE, columns % SIDE], -math.inf)
    regions = e.Transpose(e.Reshape(whole, [down, SIDE, across, SIDE]), perm=[0, 2, 1, 3])
    own = e.Reshape(regions, [down * across, SIDE**2, 1])
    other = e.Reshape(regions, [down * across, 1, SIDE**2])
    lower = np.tril(np.ones((SIDE**2, SIDE**2), bool), -1)
    better = e.Or(e.Greater(other, own), e.And(e.Equal(other, own), lower))
    rank = e.total(e.as_float(better), 2, keepdims=False)
    taken = e.Reshape(e.as_float(e.Less(rank, top_n - 0.5)), [down, across, SIDE, SIDE])
    taken = e.Reshape(e.Transpose(taken, perm=[0, 2, 1, 3]), [down * SIDE, across * SIDE])
    if rows % SIDE or columns % SIDE:
        taken = e.Slice(taken, [0, 0], [rows, columns], [0, 1])
    return str(e.Greater(e.Reshape(taken, [1, rows * columns]), 0.5))


def _emit_aggregate(
    e: Emitter, features: str, similar: str, rows: str, grid: tuple[int, int], parameters: NuwaParameters
) -> str:
    """[M, D] float32: what the collectors `rows` [M] make of all features [1, T, D]."""
    import numpy as np

    from vtexport.pruning.parts_onnx import cosine_rows, squared_offsets

    assert parameters.distance is not None
    unit = cosine_rows(e, e.Squeeze(similar, [0]))
    cosine = e.Gemm(e.Gather(unit, rows), unit, transB=1)
    offsets = e.as_float(squared_offsets(e, rows, None, grid=grid))
    reach = e.Sqrt(e.Mul(offsets, 1 / parameters.distance))
    proximity = e.Relu(e.Sub(1.0, reach))
    itself = e.Equal(e.Unsqueeze(rows, [1]), np.arange(grid[0] * grid[1])[None])
    weights = e.Where(itself, 1.0, e.Mul(e.Relu(cosine), proximity))
    weights = e.Div(weights, e.Add(e.total(weights, 1), SMALL))
    if parameters.variant == "official":
        weights = e.Where(itself, 1.0, weights)
    return str(e.Gemm(weights, e.as_float(e.Squeeze(features, [0]))))
