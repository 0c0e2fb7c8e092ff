"""Figures against NumPy, and ratios, halves and growth as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.measure.statistics import figures, half_ratios, interval, median_ratio, quarters, slope

times = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=60)


@given(times)
def test_figures_are_numpys(values: list[float]) -> None:
    found = figures(values)
    assert found.samples == len(values)
    assert (found.min, found.max) == (min(values), max(values))
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(found, name) == np.percentile(values, percent)
    assert found.mean == np.mean(values)
    assert found.std == (np.std(values, ddof=1) if len(values) > 1 else 0)
    assert found.jitter == found.p99 - found.p50
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max


@given(times, st.randoms())
def test_order_of_samples_does_not_count(values: list[float], random: object) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = figures(values), figures(shuffled)
    assert (one.p50, one.p99, one.min, one.max) == (other.p50, other.p99, other.min, other.max)
    assert one.mean == pytest.approx(other.mean)


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=2, max_size=30), st.floats(0.1, 10))
def test_a_plan_that_is_a_multiple_of_another_has_that_ratio(pairs: list[tuple[float, float]], factor: float) -> None:
    other = np.asarray([pair[0] for pair in pairs])
    found = median_ratio(factor * other, other, seed=1)
    assert found.value == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)
    first, second, apart = half_ratios(factor * other, other)
    assert first == pytest.approx(factor)
    assert second == pytest.approx(factor)
    assert apart == pytest.approx(0, abs=1e-9)


def test_the_interval_holds_the_ratio_and_narrows_with_the_samples() -> None:
    random = np.random.default_rng(3)

    def width(count: int) -> float:
        one, other = random.normal(200, 20, count), random.normal(100, 10, count)
        found = median_ratio(one, other, seed=0)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= 2 <= found.high or count > 1000
        return found.high - found.low

    assert width(4000) < width(40)


def test_an_interval_without_a_finite_bound_says_so() -> None:
    found = interval(1.0, np.asarray([-np.inf] * 50 + [1.0] * 50))
    assert found.low is None
    assert found.high == 1.0


def test_halves_are_apart_where_one_plan_got_slower() -> None:
    one = np.asarray([100.0] * 10 + [104.0] * 10)
    first, second, apart = half_ratios(one, np.full(20, 50.0))
    assert (first, second) == (2.0, 2.08)
    assert apart == pytest.approx(1 - 2 / 2.08)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.lists(st.integers(0, 1000), min_size=2, unique=True))
def test_slope_of_a_line(constant: float, rise: float, places: list[int]) -> None:
    found = slope([float(x) for x in places], [constant + rise * x for x in places])
    assert found == pytest.approx(rise, abs=1e-6)


def test_too_little_for_quarters_or_a_slope() -> None:
    assert quarters([1.0, 2.0, 3.0]) is None
    assert quarters([1.0, 2.0, 3.0, 4.0]) == (1.0, 4.0)
    assert slope([1.0], [2.0]) is None
