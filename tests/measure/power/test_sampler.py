"""The thread that reads a source: what it gives, and what it does when readings fail."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from vtexport.errors import UsageError
from vtexport.measure.power.base import Reading, ReadingError
from vtexport.measure.power.sampler import PowerSampler


class Source:
    """A source whose readings a test makes up."""

    name, rails, rail, period_s = "fake", ["all"], "all", 0.002

    def __init__(self, reading: Callable[[int, float], Reading]):
        self._reading, self.reads, self.closed = reading, 0, False

    def read(self) -> Reading:
        self.reads += 1
        return self._reading(self.reads, time.perf_counter())

    def close(self) -> None:
        self.closed = True


def wait_for(sampler: PowerSampler, readings: int) -> None:
    while sampler.report().readings < readings:
        time.sleep(0.001)


def test_power_of_a_span() -> None:
    # Stamps are of a clock of the source's own, so that a busy machine makes no gaps.
    source = Source(lambda number, at: Reading(number * 0.001, watts=20.0))
    with PowerSampler(source, period_s=0.001) as sampler:
        assert sampler.report().readings >= 1  # a span may begin at once
        energy = sampler.energy(0.0015, 0.0105)  # waits for a reading behind the end
    assert energy is not None
    assert energy.joules == pytest.approx(20 * 0.009)
    assert energy.mean_w == pytest.approx(20)
    assert (energy.samples, energy.gaps, energy.errors) == (9, 0, 0)
    report = sampler.report()
    assert (report.errors, report.stale, report.last_error) == (0, 0, None)
    assert report.cpu_share is not None
    assert not source.closed  # the next sampler takes it
    assert sampler.energy(0.0015, 0.0105) == energy


def test_the_end_of_the_block_has_a_reading_behind_it() -> None:
    with PowerSampler(Source(lambda number, at: Reading(at, joules=5 * at))) as sampler:
        start = time.perf_counter()
        wait_for(sampler, 6)
        end = time.perf_counter()
    energy = sampler.energy(start, end)
    assert energy is not None
    assert energy.joules == pytest.approx(5 * (end - start))


def test_readings_that_fail_are_counted_and_told() -> None:
    def reading(number: int, at: float) -> Reading:
        if number % 2:
            raise ReadingError(f"number {number} failed")
        return Reading(at, watts=1.0)

    with PowerSampler(Source(reading)) as sampler:
        wait_for(sampler, 4)
        report = sampler.report()
    assert report.errors >= 3
    assert report.last_error is not None
    assert "failed" in report.last_error


def test_a_source_that_gives_nothing() -> None:
    def reading(number: int, at: float) -> Reading:
        raise ReadingError("gone")

    with PowerSampler(Source(reading)) as sampler:
        start = time.perf_counter()
        assert sampler.energy(start, start + 0.01) is None
    assert sampler.report().readings == 0
    assert sampler.report().last_error == "gone"


def test_old_readings_and_counters_that_fall_are_left_out() -> None:
    def reading(number: int, at: float) -> Reading:
        if number % 4 == 2:
            return Reading(at - 1000, joules=number)
        return Reading(at, joules=0.0 if number % 4 == 3 else float(number))

    with PowerSampler(Source(reading)) as sampler:
        wait_for(sampler, 6)
    readings = sampler._readings
    assert all(a.at < b.at for a, b in itertools.pairwise(readings))
    assert all((a.joules or 0) <= (b.joules or 0) for a, b in itertools.pairwise(readings))
    assert sampler.report().stale >= 2


def test_a_defect_of_a_source_is_not_swallowed() -> None:
    def reading(number: int, at: float) -> Reading:
        if number > 1:
            raise ZeroDivisionError("a defect")
        return Reading(at, watts=1.0)

    with PowerSampler(Source(reading)) as sampler, pytest.raises(ZeroDivisionError, match="a defect"):
        sampler.energy(time.perf_counter(), time.perf_counter() + 60)


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan")])
def test_a_period_that_is_none(period: float) -> None:
    with pytest.raises(UsageError, match="give one above 0"):
        PowerSampler(Source(lambda number, at: Reading(at, watts=1.0)), period)
