"""Verdicts: one thing that a device computed beside what PyTorch answered, within bounds that the proof measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vtexport.bundle.proof import Arrays, Noise, PlanProof
from vtexport.bundle.proof_samples import Deviation, logits_deviation, overlap, rows_deviation
from vtexport.dtypes import DTYPES
from vtexport.errors import quoted
from vtexport.validate.report import Check, Stage, Verdict

# Of the noise that rounding alone makes in PyTorch, by precision (docs/proof.md has what was measured).
FACTOR, HALF_FACTOR = 8.0, 3.0
# Least bounds, where the noise of a tensor happened to be next to nothing, in the precision's epsilon: rms and largest.
FLOOR, HALF_FLOOR = (8.0, 50.0), (1.0, 6.0)
LEAST_OVERLAP, COARSE_OVERLAP = 0.9, 0.6  # of kept tokens, where rounding can change some; the latter in bfloat16
SURE_MARGIN = 1e-5  # of scores, above which float32 does not change what is kept
MOST_LEVELS = 1.01  # of a pixel, where another Pillow resized


def tensor_check(arrays: Arrays, plan: PlanProof, precision: str, case: int, name: str, found: np.ndarray) -> Check:
    """A tensor with rows [N, ...], or logits [V], beside what is stored of it.

    Two deviations have to be within their bounds, the root mean square and the largest; the one that is further out is
    what the check shows.
    """
    prefix = f"{case}.{name}."
    stored = {part: arrays[prefix + part] for part in arrays.under(prefix)}
    if "logits" in name:
        deviation = logits_deviation(found, stored)
    else:
        deviation = rows_deviation(
            found, {part: arrays[prefix + part] for part in ("rows", "mean")}, plan.strides[name]
        )
    noise = plan.noise.get(name)
    if noise is None:
        return _check(name, case, "skipped", note="in PyTorch, too, rounding alone changes which tokens are kept")
    rms, largest = bounds(noise, precision)
    return _within(name, case, deviation, rms, largest)


def bounds(noise: Noise, precision: str) -> tuple[float, float]:
    """The largest root mean square and the largest single deviation that pass."""
    factor, (rms, largest) = (FACTOR, FLOOR) if precision == "float32" else (HALF_FACTOR, HALF_FLOOR)
    epsilon = DTYPES[precision].epsilon
    return max(factor * noise.rms, rms * epsilon), max(factor * noise.largest, largest * epsilon)


def _within(name: str, case: int, found: Deviation, rms: float, largest: float) -> Check:
    verdict: Verdict = "pass" if found.rms <= rms and found.largest <= largest else "fail"
    if found.rms / rms >= found.largest / largest:
        return _check(name, case, verdict, found.rms, rms, "root mean square")
    return _check(name, case, verdict, found.largest, largest, "largest")


def least_overlap(plan: PlanProof, place: str, precision: str, margins: Mapping[str, float]) -> float:
    """The least share of kept tokens that have to be PyTorch's, 1 where rounding cannot change any.

    In float32 it can where a margin is as small as rounding, or where it did so in PyTorch. `margins` are of the place.
    """
    shared = plan.overlap.get(place, 1.0)
    if precision == "float32" and shared == 1.0 and not any(each <= SURE_MARGIN for each in margins.values()):
        return 1.0
    return max(0.0, min(COARSE_OVERLAP if precision == "bfloat16" else LEAST_OVERLAP, 1 - 2 * (1 - shared)))


def kept_check(
    stage: Stage,
    place: str,
    case: int,
    found: np.ndarray,
    expected: np.ndarray,
    least: float,
    margins: Mapping[str, float],
) -> Check:
    """Kept indices [n] beside the expected ones; `least` is the share that has to be the same where not all are."""
    what = "kept" if place == "visual" else f"kept, {place}"
    if np.array_equal(found, expected):
        return _check(what, case, "pass", 1.0, least, stage=stage)
    share = overlap(found, expected)
    same_set = len(found) == len(expected) and share == 1.0
    note = "the same tokens in another order" if same_set else f"{len(found)} tokens, {len(expected)} expected"
    if margins:
        note += "; margins in PyTorch: " + ", ".join(f"{name} {value:.3g}" for name, value in margins.items())
    verdict: Verdict = "differs" if len(found) == len(expected) and share >= least and least < 1.0 else "fail"
    return _check(what, case, verdict, share, least, note, stage)


def tokens_check(case: int, found: np.ndarray, expected: np.ndarray, gaps: np.ndarray, reach: float) -> Check:
    """Greedy tokens [K], each chosen behind the expected ones before it, beside the expected [K].

    `gaps` are by how much PyTorch's token was ahead of the next, `reach` is how far two logits may come together within
    the bounds: a token whose gap is smaller can be another one by rounding.
    """
    other = np.flatnonzero(found != expected)
    same = len(expected) - len(other)
    if not len(other):
        return _check("tokens", case, "pass", float(same), float(len(expected)))
    first = int(other[0])
    note = f"token {first + 1} is the first that differs, its gap is {gaps[first]:.3g} and bounds allow {reach:.3g}"
    verdict: Verdict = "differs" if (gaps[other] <= reach).all() else "fail"
    return _check("tokens", case, verdict, float(same), float(len(expected)), note)


def reach_of(arrays: Arrays, plan: PlanProof, precision: str, case: int) -> float:
    """Distance by which the bounds let two logits of one position come together, in the logits' own unit."""
    noise = plan.noise.get("last logits") or plan.noise.get("logits") or Noise(rms=0.0, largest=0.0)
    _, largest = bounds(noise, precision)
    values = arrays.get(f"{case}.logits.all")
    values = arrays[f"{case}.logits.groups"] if values is None else values
    return 2 * largest * float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def skipped(what: str, case: int, note: str, stage: Stage = "pipeline") -> Check:
    """A check that could not be made, and why."""
    return _check(what, case, "skipped", note=note, stage=stage)


def guarded(case: int, what: str, run: Callable[[], list[Check]]) -> list[Check]:
    """The checks that `run` gives; whatever it raises is a check that failed, because the replay went no further."""
    try:
        return run()
    except Exception as error:  # a runtime's own errors have no common base
        return [_check(what, case, "fail", note=f"the replay stopped: {type(error).__name__}: {quoted(error)}")]


def _check(
    what: str,
    case: int,
    verdict: Verdict,
    measured: float | None = None,
    bound: float | None = None,
    note: str = "",
    stage: Stage = "pipeline",
) -> Check:
    shown = None if measured is None or not np.isfinite(measured) else measured  # JSON has no infinity
    if measured is not None and shown is None:
        note = f"not finite, or of another shape{'; ' + note if note else ''}"
    return Check(
        stage=stage,
        what=what,
        case=f"case {case + 1}",
        verdict=verdict,
        measured=shown,
        bound=bound,
        note=note,
    )
