"""Nüwa (arXiv 2602.02951): spatial anchors from every part of the image, which gather what is around them.

Stage 1 stands behind the vision tower, and all its tokens keep the position ids of their places; stage 2 prunes again
inside the language model. The defaults are those of the authors' LLaVA-1.5 code.
"""

from __future__ import annotations

import dataclasses

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_budget, check_keep, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.method import Method
from vtexport.pruning.op import Op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.nuwa import SIDE, Nuwa, candidates
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.options import Option, Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import AFTER_TOWER, ModelShape, before_layer

DISTANCE, PILLAR_QUANTILE = 280.0, 0.55
PAPER_REACH, PAPER_PILLAR_QUANTILE = 0.26, 0.75  # of the largest distance on the grid; of the key norms
STAGE_2 = 16  # the layer of 32 before which stage 2 acts
FIRST_SHARE = 1.75  # of the budget, in the layers before it: 112 for 64, and 16 behind it


@register
class NuwaMethod(Method):
    """One op behind the vision tower and one inside the language model; or the first alone."""

    name = "nuwa"
    title = "Nüwa: Mending the Spatial Integrity Torn by VLM Token Pruning"
    arxiv = "2602.02951"
    acts = "between the vision tower and the projector (stage 1) and inside the language model, before one layer"
    budget = "visual tokens per image and layer, the mean over the decoder's layers; stage 1 alone: those that enter it"
    op = Nuwa
    options = (
        Option(
            "stages",
            kind=str,
            default="all",
            choices=("all", "1"),
            about="both, or the first alone: then keep counts the tokens that enter the language model",
        ),
        *settings_of(Nuwa),
    )

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        return PlacedOp(AFTER_TOWER, _op(options, model, keep), model.tokens, keep, "original")

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        tokens, layers = model.tokens, model.layers
        if options["stages"] == "1":
            schedule = super().plan(options, model, keep)
            remark = (
                f"nuwa runs its stage 1 alone, so every layer sees {schedule.keep} visual tokens; "
                "leave stages out for both"
            )
            return dataclasses.replace(schedule, remarks=(remark,))
        at = scaled_layer(STAGE_2, layers)
        check_layers(self.name, [at], layers)

        def mean_of(budget: int) -> float | None:
            counts = _stage_counts(budget, tokens, at, layers)
            return counts and mean_tokens(counts[0], [(at, counts[1])], layers)

        keep = check_budget(self.name, keep, mean_of, tokens)
        counts = _stage_counts(keep, tokens, at, layers)
        assert counts is not None
        first, second = counts
        placed = self.first_op(options, model, first)
        ranking: Op = TextSimilarityTopK() if options["variant"] == "paper" else AttentionTopK()
        step = PlacedOp(before_layer(at), ranking, first, second, "original")
        return Schedule(keep, (placed, step), options.resolved(**placed.op.settings()), has_cls=model.has_cls)


def _op(options: Options, model: ModelShape, keep: int) -> Nuwa:
    """Stage 1 with `keep` tokens."""
    grid, paper = model.grid, options["variant"] == "paper"
    fewest = next(count for count in range(1, SIDE**2 + 1) if candidates(grid, count) >= keep)
    top_n = options.set_or("top_n", fewest)
    if not fewest <= top_n <= SIDE**2:
        raise UsageError(
            f"top_n={top_n} is not allowed with keep={keep} on {grid[0]} x {grid[1]} patches; "
            f"give a whole number from {fewest} to {SIDE**2}"
        )
    quantile = options.set_or("pillar_quantile", PAPER_PILLAR_QUANTILE if paper else PILLAR_QUANTILE)
    if quantile > 1:
        raise UsageError(f"pillar_quantile={quantile:g} is not allowed; give a number from 0 to 1")
    largest = (grid[0] - 1) ** 2 + (grid[1] - 1) ** 2
    usual = PAPER_REACH**2 * max(1, largest) if paper else DISTANCE
    distance = options.set_or("distance", usual)
    return Nuwa.of(options, top_n=top_n, distance=distance, pillar_quantile=quantile)


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
