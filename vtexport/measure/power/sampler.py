"""Readings of a power source in a thread of their own, and the energy of spans of time among them."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from vtexport.errors import UsageError
from vtexport.measure.power.base import PowerSource, Reading, ReadingError
from vtexport.measure.power.integral import GAP_PERIODS, Energy, integrate

__all__ = ["Energy", "PowerSampler", "SamplerReport"]

_PATIENCE_PERIODS, _PATIENCE_S = 5, 1.0  # for a reading behind the end of a span


@dataclass(frozen=True)
class SamplerReport:
    """Account of a sampler.

    Attributes:
        readings: Taken.
        errors: Readings that failed.
        stale: Readings that were no newer than the one before, or of a counter that fell; they are left out.
        gaps: Pairs of neighbouring readings with more than 3 periods between them.
        last_error: Sentence of the last that failed.
        cpu_share: Processor time of the sampler's thread by the time that it has run, 0.01 for one hundredth of a core;
            None before its first reading. A child process of the source is not in it.
    """

    readings: int
    errors: int
    stale: int
    gaps: int
    last_error: str | None
    cpu_share: float | None


class PowerSampler:
    """Reads a source at its period while the `with` block runs; the source stays open.

    Entering waits for the first reading, so that a span may begin at once.

    Args:
        source: an open one, which nothing else reads meanwhile.
        period_s: seconds from reading to reading; the source's own when None.

    Raises:
        UsageError: the period is not above zero.
    """

    def __init__(self, source: PowerSource, period_s: float | None = None):
        if period_s is not None and not period_s > 0:
            raise UsageError(f"the period between readings of power is {period_s} s; give one above 0")
        self._source = source
        self.period_s = source.period_s if period_s is None else period_s
        self._readings: list[Reading] = []
        self._errors: list[float] = []
        self._last_error: str | None = None
        self._stale = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._cpu_s = self._ran_s = 0.0

    def __enter__(self) -> PowerSampler:
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._readings or self._errors or self._failure)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        assert self._thread is not None
        self._thread.join()

    def energy(self, start: float, end: float) -> Energy | None:
        """The energy from `start` to `end` in seconds of `time.perf_counter`; waits for a reading behind `end`.

        None where readings are too few (`integral.integrate` says when); `report` tells why they are.

        Raises:
            ValueError: the span is empty.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (self._readings and self._readings[-1].at >= end) or not self._runs(),
                max(0.0, end - time.perf_counter()) + _PATIENCE_PERIODS * self.period_s + _PATIENCE_S,
            )
            if self._failure is not None:
                raise self._failure
            readings, errors = list(self._readings), list(self._errors)
        return integrate(readings, start, end, self.period_s, errors)

    def report(self) -> SamplerReport:
        """Everything that was read and what failed, so far."""
        with self._changed:
            times = [each.at for each in self._readings]
            gaps = sum(b - a > GAP_PERIODS * self.period_s for a, b in itertools.pairwise(times))
            share = self._cpu_s / self._ran_s if self._ran_s else None
            return SamplerReport(len(times), len(self._errors), self._stale, gaps, self._last_error, share)

    def _runs(self) -> bool:
        return self._failure is None and self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        cpu, began = time.thread_time(), time.perf_counter()
        due = began
        try:
            while True:
                stopping = self._stopping.wait(max(0.0, due - time.perf_counter()))
                self._take()  # one behind the end of the block, too
                with self._changed:
                    self._cpu_s, self._ran_s = time.thread_time() - cpu, time.perf_counter() - began
                if stopping:
                    return
                due = max(due + self.period_s, time.perf_counter())
        except BaseException as error:  # a defect: `energy` raises it where somebody sees it
            with self._changed:
                self._failure = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take(self) -> None:
        try:
            reading = self._source.read()
        except ReadingError as error:
            with self._changed:
                self._errors.append(time.perf_counter())
                self._last_error = str(error)
                self._changed.notify_all()
            return
        with self._changed:
            if self._readings and not _follows(self._readings[-1], reading):
                self._stale += 1
            else:
                self._readings.append(reading)
            self._changed.notify_all()


def _follows(last: Reading, reading: Reading) -> bool:
    """True for a reading that is newer than the last, and of a counter that has not fallen."""
    if reading.at <= last.at:
        return False
    return reading.joules is None or last.joules is None or reading.joules >= last.joules
