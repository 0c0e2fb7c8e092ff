"""The integral of readings: what it has to be for powers and counters that are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.measure.power.base import Reading
from vtexport.measure.power.integral import Energy, integrate

STEPS = st.floats(0.01, 10)


def rising(fewest: int = 5) -> st.SearchStrategy[list[float]]:
    return st.lists(STEPS, min_size=fewest, max_size=40).map(lambda steps: list(itertools.accumulate(steps)))


LEVEL, SLOPE = st.floats(0, 500), st.floats(-5, 5)
SHARE = st.floats(0, 1)


def powers(times: list[float], watts: Callable[[float], float]) -> list[Reading]:
    return [Reading(at, watts=watts(at)) for at in times]


def span(times: list[float], low: float, high: float) -> tuple[float, float]:
    """A span with at least three readings in it and one on either side of it."""
    start = times[0] + low * (times[1] - times[0])
    end = times[-2] + high * (times[-1] - times[-2])
    return start, end


@given(rising(), LEVEL, SLOPE, SHARE, SHARE)
def test_the_integral_of_a_linear_power_is_exact(
    times: list[float], level: float, slope: float, low: float, high: float
) -> None:
    start, end = span(times, low, high)
    energy = integrate(powers(times, lambda at: level + slope * at), start, end, period_s=100)
    assert energy is not None
    exact = level * (end - start) + slope * (end**2 - start**2) / 2
    assert energy.joules == pytest.approx(exact, rel=1e-9, abs=1e-6)
    assert energy.mean_w == pytest.approx(exact / (end - start), rel=1e-9, abs=1e-6)
    assert energy.samples == sum(start <= at <= end for at in times)


@given(rising(), LEVEL, SHARE, SHARE)
def test_a_counter_of_constant_power_is_exact(times: list[float], level: float, low: float, high: float) -> None:
    start, end = span(times, low, high)
    readings = [Reading(at, joules=1e6 + level * at) for at in times]
    energy = integrate(readings, start, end, period_s=1e-6)  # every pair is a gap, which a counter bridges
    assert energy is not None
    assert energy.joules == pytest.approx(level * (end - start), rel=1e-9, abs=1e-6)
    assert energy.gaps == energy.samples - 1 + (start not in times) + (end not in times)


@given(rising(10), st.data())
def test_parts_of_a_span_add_up(times: list[float], data: st.DataObject) -> None:
    start, end = span(times, 0.5, 0.5)
    watts = data.draw(st.lists(st.floats(0, 100), min_size=len(times), max_size=len(times)))
    readings = [Reading(at, watts=each) for at, each in zip(times, watts, strict=True)]
    middle = (times[4] + times[5]) / 2
    parts = [integrate(readings, a, b, period_s=100) for a, b in ((start, middle), (middle, end), (start, end))]
    left, right, both = (each.joules if each else math.nan for each in parts)
    assert left + right == pytest.approx(both, rel=1e-9, abs=1e-6)


@given(rising(), st.data())
def test_more_power_is_more_energy(times: list[float], data: st.DataObject) -> None:
    start, end = span(times, 0.3, 0.7)
    lower = data.draw(st.lists(st.floats(0, 100), min_size=len(times), max_size=len(times)))
    more = data.draw(st.lists(st.floats(0, 100), min_size=len(times), max_size=len(times)))
    low = integrate([Reading(at, watts=a) for at, a in zip(times, lower, strict=True)], start, end, 100)
    high = integrate([Reading(at, watts=a + b) for at, a, b in zip(times, lower, more, strict=True)], start, end, 100)
    assert low is not None
    assert high is not None
    assert low.joules <= high.joules + 1e-9


def test_too_few_readings_are_nothing_known() -> None:
    readings = powers([0.0, 1.0, 2.0, 3.0, 4.0], lambda at: 10.0)
    assert integrate(readings, 0.5, 3.5, 1) == Energy(30.0, 10.0, 3, 3.0)
    assert integrate(readings, 1.0, 3.0, 1) == Energy(20.0, 10.0, 3, 2.0)
    assert integrate(readings, 0.5, 2.5, 1) is None  # two within
    assert integrate(readings, -0.1, 3.5, 1) is None  # none before
    assert integrate(readings, 0.5, 4.1, 1) is None  # none behind
    assert integrate([], 0.5, 4.1, 1) is None
    with pytest.raises(ValueError, match="empty"):
        integrate(readings, 2.0, 2.0, 1)


def test_gaps_and_errors_are_counted() -> None:
    times = [0.1 * number for number in range(100) if not 50 < number < 57]
    energy = integrate(powers(times, lambda at: 1.0), 0.05, 9.85, 0.1, errors=[0.01, 5.1, 5.2])
    assert energy is not None
    assert (energy.gaps, energy.errors, energy.samples) == (1, 2, 92)
    assert energy.gap_s == pytest.approx(0.7)
    # More than a tenth of a span of power is missing: how it went there nobody knows.
    assert integrate(powers(times, lambda at: 1.0), 4.05, 9.85, 0.1) is None
    counters = [Reading(at, joules=at) for at in times]
    energy = integrate(counters, 4.05, 9.85, 0.1)
    assert energy is not None
    assert energy.joules == pytest.approx(5.8)


def test_a_reading_is_of_one_kind() -> None:
    with pytest.raises(ValueError, match="watts or of joules"):
        Reading(0.0)
    with pytest.raises(ValueError, match="watts or of joules"):
        Reading(0.0, watts=1.0, joules=1.0)
