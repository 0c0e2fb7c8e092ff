"""A run at a fixed rate for long: whether answers stay in time, and whether time and memory grow.

Image n comes at n / rate seconds and its answer is to be whole when the next comes. Whoever is late drops what came
meanwhile but the newest, as a camera's reader does.
"""

from __future__ import annotations

import time

from vtexport.errors import UsageError
from vtexport.measure.answer import Stopped
from vtexport.measure.bench import Bench

_SLICE = 0.05  # seconds of sleep, between which a signal is noticed
_READINGS = 200  # of the machine's state in all


class SoakBench(Bench):
    """A measurement of one plan at `Request.rate` for `Request.seconds`."""

    def measure(self) -> None:
        """Answers each image when it has come."""
        request = self.request
        if request.rate is None or request.seconds is None or len(request.contenders) != 1:
            raise UsageError("a soak takes one plan, a rate and a duration; give --plan, --rate and --duration")
        period, number = 1 / request.rate, 0
        every = max(1.0, request.seconds / _READINGS)
        (contender,) = request.contenders
        self.hooks.stage(f"answering {request.rate:g} a second with {contender.name} for {request.seconds:g} s")
        with self.open(contender) as plan:
            self.read_state("during")
            while number * period < request.seconds:
                self._wait(number * period)
                self.answer(plan, number, 0, number, due_s=number * period)
                self.read_state_sometimes(every)
                # the newest that has come, or the next
                number = max(number + 1, int((time.perf_counter() - self.begin) / period))
            self.read_state("during")

    def _wait(self, due: float) -> None:
        while (left := self.begin + due - time.perf_counter()) > 0:
            if self.hooks.stop():
                raise Stopped
            time.sleep(min(left, _SLICE))
