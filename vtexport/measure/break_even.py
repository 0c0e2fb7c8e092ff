"""Break-even of pruning on this machine, and the share of an answer that pruning cannot win.

With T the median of prefill + decode, in ms, of a plan with k visual tokens (mean over the language model's layers),
and T0 that of the unpruned plan with k0, what a plan saves is modelled as linear in k,

    T0 - T(k) = a + b k,

by least squares over the points (k, T0 - T(k)) of every pruned plan and (k0, 0) of the unpruned one, one point a plan.
What it costs is c, the mean over the pruned plans of their median of `prune`, less that of the unpruned plan, whose
prune graph is the projector alone. Pruning pays where a + b k > c, that is below

    k* = (c - a) / b        (b < 0).

The interval is the percentile bootstrap's over turns, which are drawn together for all plans. Attention in the prefill
grows with the square of k, so the line is an approximation; `largest_residual_ms` says how good a one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vtexport.measure.record import BreakEven, Interval
from vtexport.measure.statistics import interval, resampled


@dataclass(frozen=True)
class Costs:
    """Times of one plan in the same turns as the others'.

    Attributes:
        tokens: Visual tokens, mean over the language model's layers.
        language_ms: [N] float64, prefill and decode of each turn.
        prune_ms: [N] float64.
    """

    tokens: float
    language_ms: np.ndarray
    prune_ms: np.ndarray


def break_even(unpruned: str, costs: Mapping[str, Costs], seed: int = 0) -> BreakEven:
    """The number of visual tokens below which pruning pays; `costs` holds the unpruned plan and at least one other."""
    names = [unpruned, *(name for name in costs if name != unpruned)]
    tokens = np.asarray([costs[name].tokens for name in names])
    language = np.stack([costs[name].language_ms for name in names])  # [P, N]
    prune = np.stack([costs[name].prune_ms for name in names])
    drawn = resampled(language.shape[1], seed)
    _, slope, cost, value, residual = _solve(tokens, np.median(language, 1)[:, None], np.median(prune, 1)[:, None])
    resampled_medians = [np.stack([np.median(each[drawn], 1) for each in of]) for of in (language, prune)]
    _, _, _, values, _ = _solve(tokens, *resampled_medians)
    found = interval(float(value[0]), values) if slope[0] < 0 else None
    return BreakEven(
        unpruned=unpruned,
        plans=names[1:],
        tokens=found,
        ms_per_token=float(-slope[0]),
        prune_cost_ms=float(cost[0]),
        largest_residual_ms=float(residual[0]),
        sentence=_sentence(found, float(tokens[0])),
    )


def _solve(tokens: np.ndarray, language: np.ndarray, prune: np.ndarray) -> Sequence[np.ndarray]:
    """a, b, c, k* and the largest residual, [B] each, of medians [P, B] of which the first plan is unpruned.

    Where the time does not fall with the tokens, pruning pays nowhere (k* = -inf) as far as it costs something.
    """
    saved = language[0] - language
    centred = tokens - tokens.mean()
    slope = (centred[:, None] * saved).sum(0) / (centred**2).sum()
    constant = saved.mean(0) - slope * tokens.mean()
    cost = (prune[1:] - prune[0]).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(slope < 0, (cost - constant) / slope, -np.inf)
    residual = np.abs(saved - (constant + slope * tokens[:, None])).max(0)
    return constant, slope, cost, value, residual


def _sentence(found: Interval | None, unpruned_tokens: float) -> str:
    if found is None:
        return "prefill and decode take no less time with fewer visual tokens here, so pruning pays at no budget"
    low = "below 0" if found.low is None or found.low < 0 else f"{found.low:.0f}"
    high = "beyond all" if found.high is None else f"{found.high:.0f}"
    within = f"95 % interval {low} to {high}"
    if found.value <= 0:
        return f"pruning pays at no budget here: it takes more than it saves (break-even {found.value:.0f}; {within})"
    if found.value >= unpruned_tokens:
        return (
            f"pruning pays at every budget below all {unpruned_tokens:.0f} visual tokens here (break-even "
            f"{found.value:.0f}; {within})"
        )
    return f"pruning pays below {found.value:.0f} of {unpruned_tokens:.0f} visual tokens here ({within})"
