"""Energy of answers and of stages: the integral of a power rail over one thing repeated, and of the machine idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vtexport.measure.answer import MeasuredPlan, Stopped
from vtexport.measure.power.sources import NoPower, PowerSampler, PowerSource, open_power
from vtexport.measure.record import EnergyWindow, PowerFacts
from vtexport.runtime.vision import ImageLike

_DECODED = 128  # tokens after each prefill while decoding is repeated
IDLE = "idle"
ANSWER = "answer"


@dataclass(frozen=True)
class Windows:
    """Seconds that each thing is repeated for, at least."""

    idle: float = 5.0
    answers: float = 10.0
    stage: float = 5.0


class EnergyMeter:
    """A power rail and what the machine takes on it while idle. Close it when done.

    Args:
        rail: as of `open_power`.
        device: "cpu" or "cuda".
        stop: True when the measurement is to end.

    Raises:
        UsageError: there is no such rail.

    Attributes:
        facts: The source, its rail and its period, or why there is none.
    """

    def __init__(self, rail: str | None, device: str = "cpu", stop: Callable[[], bool] = lambda: False):
        found = open_power(rail, device)
        self._source: PowerSource | None = None if isinstance(found, NoPower) else found
        self._stop = stop
        self._idle_w: float | None = None
        if isinstance(found, NoPower):
            self.facts = PowerFacts(reason=found.reason)
        else:
            self.facts = PowerFacts(
                source=found.name, rail=found.rail, rails=list(found.rails), period_s=found.period_s
            )

    def close(self) -> None:
        """Gives the source back."""
        if self._source is not None:
            self._source.close()

    def idle(self, seconds: float) -> EnergyWindow:
        """The machine while this process does nothing; what it takes is subtracted from later windows."""

        def wait() -> int:
            time.sleep(0.05)
            return 0

        window = self._window(None, IDLE, seconds, wait)
        self._idle_w = window.mean_w
        return window

    def answers(self, plan: MeasuredPlan, images: Sequence[ImageLike], seconds: float) -> EnergyWindow:
        """Whole answers about the images in turn."""
        return self._window(plan.contender.name, ANSWER, seconds, _in_turn(plan, images))

    def stages(self, plan: MeasuredPlan, image: ImageLike, seconds: float) -> Iterator[EnergyWindow]:
        """Each stage of one image, repeated alone.

        Decoding needs a prefill before every 128 tokens: what that takes, known from its own window, is subtracted.
        """
        name = plan.contender.name
        steps = plan.steps(image)
        prefill: EnergyWindow | None = None
        for stage, call in steps.calls.items():

            def once(call: Callable[[], object] = call) -> int:
                call()
                plan.stages.sync()
                return 1

            prefill = self._window(name, stage, seconds, once)  # the last of them
            yield prefill
        assert prefill is not None
        prefills, room = 0, plan.settings.new_tokens - 1
        if room < 1:
            yield EnergyWindow(plan=name, what="decode", reason="answers of one token decode none; give --new-tokens 2")
            return
        token = plan.answer(image).token_ids[0]

        def decode() -> int:
            nonlocal prefills
            continuation = steps.prefill()
            prefills += 1
            done = 0
            while done < min(room, _DECODED):
                plan.stages.decode(continuation, token)
                done += 1
            plan.stages.sync()
            return done

        yield _without(self._window(name, "decode", seconds, decode), prefill, prefills)

    def _window(self, plan: str | None, what: str, seconds: float, call: Callable[[], int]) -> EnergyWindow:
        """One thing repeated for so long; `call` gives how many were done.

        Raises:
            Stopped: `stop` said so.
        """
        if self._source is None:
            return EnergyWindow(plan=plan, what=what, reason=self.facts.reason)
        with PowerSampler(self._source) as sampler:
            begin = time.perf_counter()
            count = 0
            while time.perf_counter() - begin < seconds:
                if self._stop():
                    raise Stopped
                count += call()
            end = time.perf_counter()
            energy, error = sampler.energy(begin, end), sampler.report().last_error
        if energy is None:
            reason = f"{self.facts.source} gave too few readings of {self.facts.rail} in {end - begin:.1f} s"
            reason = f"{reason} ({error})" if error else reason
            return EnergyWindow(plan=plan, what=what, count=count, seconds=end - begin, reason=reason)
        above = None if self._idle_w is None else energy.joules - self._idle_w * energy.seconds
        return EnergyWindow(
            plan=plan,
            what=what,
            count=count,
            seconds=energy.seconds,
            samples=energy.samples,
            mean_w=energy.mean_w,
            joules=energy.joules,
            gap_s=energy.gap_s,
            errors=energy.errors,
            joules_each=energy.joules / count if count else None,
            joules_each_above_idle=above / count if count and above is not None else None,
        )


def _in_turn(plan: MeasuredPlan, images: Sequence[ImageLike]) -> Callable[[], int]:
    number = 0

    def call() -> int:
        nonlocal number
        plan.answer(images[number % len(images)])
        number += 1
        return 1

    return call


def _without(window: EnergyWindow, prefill: EnergyWindow, prefills: int) -> EnergyWindow:
    """The window of decoding with the energy of its prefills taken off each token's share."""
    if window.joules is None or not window.count:
        return window
    if prefill.joules_each is None:
        window.joules_each = window.joules_each_above_idle = None
        window.reason = "the energy of a prefill, which is to be taken off, is not known"
        return window

    def less(each: float | None, of: float | None) -> float | None:
        return None if each is None or of is None else each - of * prefills / window.count

    window.joules_each = less(window.joules_each, prefill.joules_each)
    window.joules_each_above_idle = less(window.joules_each_above_idle, prefill.joules_each_above_idle)
    return window
