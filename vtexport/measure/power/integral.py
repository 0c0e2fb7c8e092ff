"""Integral of readings over a span of time."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vtexport.measure.power.base import Reading

FEWEST = 3  # readings within a span that say something about it
GAP_PERIODS = 3  # between two readings; more is a gap
MOST_IN_GAPS = 0.1  # of a span: how power went in a gap nobody knows


@dataclass(frozen=True)
class Energy:
    """Energy of a span of time.

    Attributes:
        joules: Of all of it.
        mean_w: Over all of it.
        samples: Readings within it.
        seconds: Its length.
        gaps: Places in it where readings are missing.
        gap_s: Their length together.
        errors: Readings within it that failed.
    """

    joules: float
    mean_w: float
    samples: int
    seconds: float
    gaps: int = 0
    gap_s: float = 0.0
    errors: int = 0


def integrate(
    readings: Sequence[Reading], start: float, end: float, period_s: float, errors: Sequence[float] = ()
) -> Energy | None:
    """The energy from `start` to `end`: the difference of a counter, or the integral of power by trapezoids.

    At both ends the value is interpolated between the readings around it.

    Args:
        readings: by ascending `at`, all of one kind.
        start: seconds of the same clock.
        end: likewise, after `start`.
        period_s: seconds from reading to reading, as they were meant to come.
        errors: times at which a reading failed.

    Returns:
        None where there are no readings on both sides of the span, fewer than 3 within it, or where gaps make up more
        than a tenth of it and the readings are of power.

    Raises:
        ValueError: the span is empty.
    """
    if not start < end:
        raise ValueError(f"the span from {start} to {end} is empty")
    times = [each.at for each in readings]
    first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
    samples = last - first
    # `first` is the first reading in the span; one at the border itself needs none before it.
    before = first if first < len(times) and times[first] == start else first - 1
    after = last - 1 if last and times[last - 1] == end else last
    if samples < FEWEST or before < 0 or after >= len(times):
        return None
    around = readings[before : after + 1]
    gaps = [
        min(right.at, end) - max(left.at, start)
        for left, right in itertools.pairwise(around)
        if right.at - left.at > GAP_PERIODS * period_s
    ]
    seconds = end - start
    if around[0].joules is not None:
        joules = _joules(around[-2], around[-1], end) - _joules(around[0], around[1], start)
    else:
        if sum(gaps) > MOST_IN_GAPS * seconds:
            return None
        joules = _trapezoids(around, start, end)
    failed = bisect.bisect_right(errors, end) - bisect.bisect_left(errors, start)
    return Energy(joules, joules / seconds, samples, seconds, len(gaps), sum(gaps), failed)


def _trapezoids(around: Sequence[Reading], start: float, end: float) -> float:
    area = 0.0
    for left, right in itertools.pairwise(around):
        begin, finish = max(left.at, start), min(right.at, end)
        area += (_watts(left, right, begin) + _watts(left, right, finish)) / 2 * (finish - begin)
    return area


def _watts(left: Reading, right: Reading, at: float) -> float:
    assert left.watts is not None
    assert right.watts is not None
    return _between(left.at, left.watts, right.at, right.watts, at)


def _joules(left: Reading, right: Reading, at: float) -> float:
    assert left.joules is not None
    assert right.joules is not None
    return _between(left.at, left.joules, right.at, right.joules, at)


def _between(left: float, low: float, right: float, high: float, at: float) -> float:
    """The value at a time between two, on the line through both."""
    return low + (high - low) * ((at - left) / (right - left))
