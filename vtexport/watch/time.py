"""Time of a loop: the machine's, or that of a recording, which stands still while an answer is computed."""

from __future__ import annotations

import time


class RealTime:
    """The machine's time, seconds."""

    stands_still = False

    def now(self) -> float:
        """Seconds on a clock that nobody sets."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970 in UTC."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(max(0.0, seconds))


class RecordedTime(RealTime):
    """The time of a recording: nothing but waiting moves it, and waiting takes none."""

    stands_still = True

    def __init__(self) -> None:
        self._now, self._began = 0.0, time.time()

    def now(self) -> float:
        """Seconds since the recording's first frame."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970 in UTC, as if the recording had begun when it was opened."""
        return self._began + self._now

    def sleep(self, seconds: float) -> None:
        """Moves the time on."""
        self._now += max(0.0, seconds)
