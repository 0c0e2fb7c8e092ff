"""Times on a GPU: CUDA events around single graph replays, many replays enqueued before the GPU begins."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

BURST = 48  # replays that are enqueued at once


class GpuClock:
    """CUDA events on the current stream."""

    def event(self) -> Any:
        import torch

        return torch.cuda.Event(enable_timing=True)

    def hold(self, seconds: float) -> None:
        """Keeps the GPU busy, so that what is enqueued meanwhile runs without waiting for this process."""
        import torch

        torch.cuda._sleep(int(seconds * 2e9))  # cycles; clocks are near 2 GHz, and a little more or less is harmless

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()


class _WallEvent:
    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _WallEvent) -> float:
        return 1e3 * (end.at - self.at)


class WallClock:
    """The same by the wall clock, for work that is done when its call returns."""

    def event(self) -> Any:
        return _WallEvent()

    def hold(self, seconds: float) -> None:
        return None

    def wait(self) -> None:
        return None


def replay_us(replays: Sequence[Callable[[], Any]], count: int, clock: Any) -> list[float]:
    """`count` samples in microseconds, each of one replay, of `replays` in turn; one round before is not counted."""
    for replay in replays:
        replay()
    samples: list[float] = []
    turn = 0
    while len(samples) < count:
        pairs = []
        size = min(BURST, count - len(samples))
        clock.wait()
        clock.hold(5e-4 + 4e-5 * size)
        for _ in range(size):
            start, end = clock.event(), clock.event()
            start.record()
            replays[turn % len(replays)]()
            end.record()
            pairs.append((start, end))
            turn += 1
        clock.wait()
        samples += [1e3 * start.elapsed_time(end) for start, end in pairs]
    return samples


def call_us(run: Callable[[], Any], clock: Any, *, most: int, seconds: float) -> tuple[list[float], Any]:
    """Samples in microseconds of a call, by the wall clock until the GPU is done, and the last result.

    Up to `most`, in about `seconds`. The first call is not counted, unless it alone took longer than that.
    """
    samples: list[float] = []
    begin, first = time.perf_counter(), True
    while True:
        clock.wait()
        start = time.perf_counter()
        result = run()
        clock.wait()
        end = time.perf_counter()
        late = end - begin > seconds
        if not first or late:
            samples.append(1e6 * (end - start))
        first = False
        if samples and (late or len(samples) == most):
            return samples, result


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, p99 (the nearest rank, so with fewer than 100 samples the largest), least, and the samples."""
    ranked = sorted(samples)
    return {
        "median": statistics.median(ranked),
        "p99": ranked[math.ceil(0.99 * len(ranked)) - 1],
        "min": ranked[0],
        "samples": [round(each, 3) for each in samples],
    }


def overhead_us(clock: Any, count: int = 100) -> float:
    """Median time between two events with nothing between them: a part of every sample that is not the op's."""
    return statistics.median(replay_us([lambda: None], count, clock))
