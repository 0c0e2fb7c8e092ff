"""ViTCoP (arXiv 2601.17818): prunes three times, coarsely behind the vision tower and twice inside the language model.

Stage I keeps what the tower's CLS token looks at most; at a shallow layer one merged token stands for what is left of
every cluster (II); a deep layer prunes again (III). The defaults are those of the authors' code.
"""

from __future__ import annotations

import dataclasses
import math

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_budget, check_keep, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.method import Method
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.vitcop import ViTCoP
from vtexport.pruning.options import Option, Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import AFTER_TOWER, ModelShape, before_layer

# The authors' presets keep .5, .4 and .3 of the patches in stage I with .18, .15 and .12 of those as clusters: a line.
SHARE_OF_NONE, SHARE_SLOPE = 0.03, 0.3
RATIOS, PRESETS = (0.3, 0.4, 0.5), (1 / 9, 2 / 9, 1 / 3)  # stage I's share of the patches, for which mean share
PRESET_WIDTH = 1e-3  # the presets are written with four digits
SHALLOW, DEEP = 2, 22  # layers of 32 before which stages 2 and 3 act


_SHARE = Option(
    "cluster_share",
    kind=float,
    above=0,
    about="clusters per kept token c; default 0.03 + 0.3 keep / patches, as the presets",
)
_DEEP = Option(
    "deep_positions",
    kind=str,
    default="official",
    choices=("official", "original"),
    about="position ids behind stage 3: in prefill the places before it (code), or each token's own",
)


@register
class ViTCoPMethod(Method):
    """One op behind the vision tower and two inside the language model; or the first alone."""

    name = "vitcop"
    title = "ViTCoP: Accelerating Large Vision-Language Models via Visual and Textual Semantic Collaborative Pruning"
    arxiv = "2601.17818"
    acts = "between the vision tower and the projector (stage I) and inside the language model, before two layers"
    budget = "visual tokens per image and layer, the mean over the decoder's layers; stage I alone: those that enter it"
    op = ViTCoP
    options = (
        Option(
            "stages",
            kind=str,
            default="all",
            choices=("all", "1"),
            about="all, or the first alone: then keep counts the tokens that enter the language model",
        ),
        *settings_of(ViTCoP, after={"clustering": [_SHARE], "radius": [*settings_of(ClusterMerge, "merge"), _DEEP]}),
    )

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        _, count = _clusters(options, model.tokens, keep)
        return PlacedOp(AFTER_TOWER, ViTCoP.of(options, cluster_count=count), model.tokens, keep)

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        tokens, layers = model.tokens, model.layers
        if options["stages"] == "1":
            schedule = super().plan(options, model, keep)
            share, _ = _clusters(options, tokens, schedule.keep)
            remark = (
                f"vitcop runs its stage I alone, so every layer sees {schedule.keep} visual tokens; "
                "leave stages out for all"
            )
            settings = {**schedule.settings, "cluster_share": share}
            return dataclasses.replace(schedule, settings=settings, remarks=(remark,))
        at = scaled_layer(SHALLOW, layers), scaled_layer(DEEP, layers)
        check_layers(self.name, at, layers)

        def mean_of(budget: int) -> float | None:
            counts = _stage_counts(budget, tokens, at, layers)
            return counts and mean_tokens(counts[0], list(zip(at, counts[1:], strict=True)), layers)

        keep = check_budget(self.name, keep, mean_of, tokens)
        counts = _stage_counts(keep, tokens, at, layers)
        assert counts is not None
        first, second, third = counts
        placed = self.first_op(options, model, first)
        placed = dataclasses.replace(placed, op=dataclasses.replace(placed.op, clusters=True))  # type: ignore[type-var]
        share, count = _clusters(options, tokens, first)
        merging = ClusterMerge.of(options, clusters=count)
        ops = (
            placed,
            PlacedOp(before_layer(at[0]), merging, first, second, "original"),
            PlacedOp(before_layer(at[1]), KeyNormTopK(), second, third, options["deep_positions"]),
        )
        settings = options.resolved(**placed.op.settings(), cluster_share=share)
        return Schedule(keep, ops, settings, has_cls=model.has_cls)


def _clusters(options: Options, tokens: int, keep: int) -> tuple[float, int]:
    """Clusters per kept token, and their number."""
    share, count = options["cluster_share"], options["cluster_count"]
    if share is None:
        share = SHARE_OF_NONE + SHARE_SLOPE * keep / tokens if count is None else count / keep
    given = f"cluster_share={share:g}" if count is None else f"cluster_count={count}"
    if count is None:
        count = max(1, int(share * keep))
    if share > 1 or count > keep:
        raise UsageError(f"{given} is not allowed with keep={keep}; give a share up to 1, or a count from 1 to {keep}")
    return share, count


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
