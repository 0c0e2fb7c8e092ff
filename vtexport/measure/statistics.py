"""Statistics of samples: percentiles, ratios with bootstrap intervals, agreement of two halves, growth in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtexport.measure.record import Figures, Interval

RESAMPLES = 2000
QUIET = 0.03  # by which the ratio of two plans may differ between the halves of a measurement


def figures(values: Sequence[float] | np.ndarray) -> Figures:
    """Figures of at least one finite value, in its unit."""
    array = np.asarray(values, np.float64)
    p50, p90, p95, p99 = np.percentile(array, [50, 90, 95, 99])
    return Figures(
        samples=len(array),
        mean=float(array.mean()),
        std=float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        min=float(array.min()),
        p50=float(p50),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        max=float(array.max()),
        jitter=float(p99 - p50),
    )


def resampled(count: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """[resamples, count] int64: numbers of samples drawn with replacement, each row one resample."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def interval(value: float, drawn: np.ndarray) -> Interval:
    """`value` with the 2.5 and 97.5 percentile of the same quantity over resamples (percentile bootstrap)."""
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")  # interpolating infinities gives no number
    return Interval(value=value, low=finite(low), high=finite(high))


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return float(value) if np.isfinite(value) else None


def median_ratio(one: np.ndarray, other: np.ndarray, seed: int) -> Interval:
    """Median of `one` over the median of `other`, both [N] of the same turns, which are resampled together."""
    drawn = resampled(len(one), seed)
    ratios = np.median(one[drawn], axis=1) / np.median(other[drawn], axis=1)
    return interval(float(np.median(one) / np.median(other)), ratios)


def half_ratios(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Ratio of medians in the first and in the second half of [N] turns, N at least 2, and |first / second - 1|."""
    middle = len(one) // 2
    first = float(np.median(one[:middle]) / np.median(other[:middle]))
    second = float(np.median(one[middle:]) / np.median(other[middle:]))
    return first, second, abs(first / second - 1)


def quarters(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """Medians of the first and of the last quarter; None of fewer than four values."""
    count = len(values) // 4
    if count == 0:
        return None
    return float(np.median(values[:count])), float(np.median(values[-count:]))


def slope(times: Sequence[float], values: Sequence[float]) -> float | None:
    """Least-squares slope of `values` over `times`; None where all times are one."""
    if len(set(times)) < 2:
        return None
    t, v = np.asarray(times, np.float64), np.asarray(values, np.float64)
    t = t - t.mean()
    return float((t * (v - v.mean())).sum() / (t * t).sum())
