"""The measurement itself: plans of one bundle, or of two, answer by turns in one run.

Around the turns: memory of each plan in a process of its own, the machine's speed and state, energy. Everything goes
through `Lines` as it is read, so that an end at any time keeps it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from vtexport.errors import InputError, UsageError, VtexportError, printable
from vtexport.measure.answer import Contender, MeasuredPlan, Settings, Stopped, Timed, check_settings
from vtexport.measure.calibration import calibrate
from vtexport.measure.energy import EnergyMeter, Windows
from vtexport.measure.memory import plan_memory
from vtexport.measure.partial import Lines
from vtexport.measure.pictures import Pictures
from vtexport.measure.record import Failure, Memory, Note, Sample, StateAt
from vtexport.measure.state import read_state
from vtexport.measure.turns import orders

SAMPLES = 50
STOPPED = "a signal"
_STATE_EVERY = 5.0  # seconds between readings of the machine's state, outside of answers
_BLOCK = 10  # answers of a turn where one plan is loaded at a time and the time is given
_BLOCKS = 4  # turns of each plan then, where the number of samples is given
EnergyOf = Literal["nothing", "answers", "stages"]


@dataclass(frozen=True)
class Request:
    """A measurement to make.

    Attributes:
        contenders: Plans that take turns.
        settings: Of every answer.
        pictures: The images, of which each turn takes the next.
        samples: Of each plan; None where `seconds` says when to end.
        seconds: For so long, and to the end of the turn.
        warm_up: Answers of each plan before its first sample.
        seed: Of the turns' order and of the intervals.
        one_at_a_time: Has one plan in memory at a time, opened anew for each of its turns.
        memory: Measures each plan's in a process of its own first.
        energy: Of answers, or of each stage as well.
        rail: Of the power source; None for its own choice.
        windows: Of the energy.
        rate: Answers a second, of a soak.
    """

    contenders: Sequence[Contender]
    settings: Settings
    pictures: Pictures
    samples: int | None = SAMPLES
    seconds: float | None = None
    warm_up: int = 3
    seed: int = 0
    one_at_a_time: bool = False
    memory: bool = True
    energy: EnergyOf = "nothing"
    rail: str | None = None
    windows: Windows = field(default_factory=Windows)
    rate: float | None = None

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            UsageError: a number is out of range.
        """
        check_settings(self.settings)
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples are {self.samples}; give a whole number from 1")
        if self.warm_up < 0:
            raise UsageError(f"the warm-up is {self.warm_up}; give a whole number from 0")
        if self.seed < 0:
            raise UsageError(f"the seed is {self.seed}; give a whole number from 0")

    @property
    def answers_per_turn(self) -> int:
        """One, or a block of them where opening a plan is part of each turn."""
        if not self.one_at_a_time:
            return 1
        return _BLOCK if self.samples is None else -(-self.samples // _BLOCKS)


@dataclass(frozen=True)
class Hooks:
    """Functions of who asked for the measurement.

    Attributes:
        stage: Gets a line on each step of the work.
        done: Gets each count of answers done.
        stop: True when the measurement is to end.
    """

    stage: Callable[[str], object] = lambda text: None
    done: Callable[[int], object] = lambda count: None
    stop: Callable[[], bool] = lambda: False


def threads_of(settings: Settings, machine: dict[str, Any]) -> int:
    """Threads of one operator: those given, or as many as the process may use cores."""
    return settings.threads or int(machine["cores"] or 1)


class Bench:
    """One measurement into `lines`; `run` makes it.

    Raises:
        UsageError: the request is out of range.
    """

    def __init__(self, request: Request, lines: Lines, hooks: Hooks):
        request.check()
        self.request, self.lines, self.hooks = request, lines, hooks
        self.begin = time.perf_counter()  # set anew before the first sample
        self._last_state = self.begin
        self._opened: dict[str, MeasuredPlan] = {}
        self._numbers = list(range(len(request.pictures.images)))  # of images that can still be read

    def run(self) -> str | None:
        """Measures, and returns what ended it early: None, `STOPPED` or a sentence.

        Raises:
            UsageError, InputError, BundleError, MissingDependencyError: as `Pipeline`; nothing was measured then.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            try:
                self.prepare()
                self.measure()
                self.measure_energy()
                self.after()
            except Stopped:
                return STOPPED
            except _NoImageLeft:
                return "no image is left that can be read"
            except (VtexportError, KeyboardInterrupt) as error:
                if not self.lines.samples:
                    raise
                return printable(error) or STOPPED
        return None

    def prepare(self) -> None:
        """Everything before the first sample: the machine's speed and state, plans opened and warmed up."""
        for failure in self.request.pictures.failures:
            self.lines.add(failure)
        self.hooks.stage("measuring the machine's own speed")
        threads = threads_of(self.request.settings, self.lines.header.machine)
        self.lines.add(calibrate("before", threads))
        self.read_state("before")
        if not self.request.one_at_a_time:
            for contender in self.request.contenders:
                self._open(contender)
        self.begin = self._last_state = time.perf_counter()

    def measure(self) -> None:
        """Turns until there are enough samples or the time is over."""
        request = self.request
        self.hooks.stage(f"measuring {', '.join(each.name for each in request.contenders)} by turns")
        block = request.answers_per_turn
        for turn, order in enumerate(orders(request.contenders, request.seed)):
            if self.is_enough(turn * block):
                return
            for place, contender in enumerate(order):
                with self.open(contender) as plan:
                    for within in range(block):
                        self.answer(plan, turn, place, turn * block + within)
            self.read_state_sometimes()

    def is_enough(self, answers: int) -> bool:
        """True when every plan has answered that often and no more turns are wanted."""
        request = self.request
        if request.seconds is not None:
            return time.perf_counter() - self.begin >= request.seconds
        assert request.samples is not None
        return answers >= request.samples

    def answer(
        self, plan: MeasuredPlan, turn: int, place: int, number: int, due_s: float | None = None
    ) -> Sample | None:
        """One answer about the image whose turn it is; None where the image could not be answered about.

        That image is passed over from then on.

        Raises:
            Stopped: by `Hooks.stop`.
        """
        if not self._numbers:
            raise _NoImageLeft
        image = self._numbers[number % len(self._numbers)]
        at = time.perf_counter() - self.begin
        try:
            timed = plan.answer(self.request.pictures.images[image])
        except InputError as error:
            name = self.request.pictures.names[image]
            self.lines.add(Failure(image=name, reason=printable(error), at_s=at, plan=plan.contender.name))
            self.hooks.stage(f"{name} is left out from here on: {error}")
            self._numbers.remove(image)
            return None
        sample = _sample(plan.contender.name, timed, turn, place, image, at)
        if due_s is not None:
            assert self.request.rate is not None
            deadline = due_s + 1 / self.request.rate
            sample.due_s, sample.late_ms = due_s, 1e3 * (time.perf_counter() - self.begin - deadline)
        self.add(sample)
        self.hooks.done(1)
        return sample

    def add(self, sample: Sample) -> None:
        """Keeps a sample; says once that the file of lines cannot be written any more."""
        had = self.lines.problem
        self.lines.add(sample)
        if self.lines.problem is not None and had is None:
            self.note(self.lines.problem)

    def note(self, text: str) -> None:
        """A sentence for the report, and for who watches."""
        self.lines.add(Note(text=text))
        self.hooks.stage(f"note: {text}")

    def measure_energy(self) -> None:
        """Energy of repeated answers and of repeated stages, after an idle window."""
        request = self.request
        if request.energy == "nothing":
            return
        with contextlib.closing(EnergyMeter(request.rail, request.settings.device, self.hooks.stop)) as meter:
            self.lines.add(meter.facts)
            if meter.facts.reason is not None:
                self.hooks.stage(f"note: no energy is measured: {meter.facts.reason}")
            else:
                self._measure_energy(meter)

    def _measure_energy(self, meter: EnergyMeter) -> None:
        request = self.request
        images = [request.pictures.images[number] for number in self._numbers]
        self.hooks.stage(f"measuring the energy on {meter.facts.source}, {meter.facts.rail}")
        self.lines.add(meter.idle(request.windows.idle))
        for contender in request.contenders:
            with self.open(contender) as plan:
                self.lines.add(meter.answers(plan, images, request.windows.answers))
                if request.energy == "stages":
                    for window in meter.stages(plan, images[0], request.windows.stage):
                        self.lines.add(window)

    def after(self) -> None:
        """The machine's state and speed once more."""
        self.read_state("after")
        self.lines.add(calibrate("after", threads_of(self.request.settings, self.lines.header.machine)))

    def read_state(self, when: Literal["before", "during", "after"]) -> None:
        """Reads the machine's state; `at_s` is negative before the first sample."""
        self._last_state = now = time.perf_counter()
        at = now - self.begin if when != "before" else -1.0
        self.lines.add(StateAt(when=when, at_s=at, state=msgspec.to_builtins(read_state(self.request.settings.device))))

    def read_state_sometimes(self, every: float = _STATE_EVERY) -> None:
        """The same between answers, not more often than every few seconds."""
        if time.perf_counter() - self._last_state >= every:
            self.read_state("during")

    @contextlib.contextmanager
    def open(self, contender: Contender) -> Iterator[MeasuredPlan]:
        """The plan, which stays open unless one is loaded at a time."""
        plan = self._opened.get(contender.name) or self._open(contender)
        yield plan
        if self.request.one_at_a_time:
            plan.close()
            del self._opened[contender.name]

    def _open(self, contender: Contender) -> MeasuredPlan:
        if not self.request.one_at_a_time:
            self.hooks.stage(f"opening {contender.name}")
        plan = MeasuredPlan(contender, self.request.settings, self.hooks.stop)
        self._opened[contender.name] = plan
        for number in range(self.request.warm_up):
            if not self._numbers:
                raise _NoImageLeft
            plan.answer(self.request.pictures.images[self._numbers[number % len(self._numbers)]])
        return plan

    def close(self) -> None:
        """Gives the memory of every plan back."""
        for plan in self._opened.values():
            plan.close()
        self._opened.clear()


class _NoImageLeft(Exception):  # noqa: N818
    """Every image failed meanwhile."""


def _sample(plan: str, timed: Timed, turn: int, place: int, image: int, at: float) -> Sample:
    return Sample(
        plan=plan,
        turn=turn,
        place=place,
        image=image,
        at_s=at,
        prompt_tokens=timed.prompt_tokens,
        visual_tokens=timed.visual_tokens,
        stages_ms=timed.stages_ms,
        decode_ms=timed.decode_ms,
        first_token_ms=timed.first_token_ms,
        total_ms=timed.total_ms,
    )


def measure_memory(request: Request, hooks: Hooks) -> list[Memory]:
    """Memory of each plan alone, before any is opened here."""
    found = []
    image = request.pictures.images[0]
    given = request.seed if request.pictures.synthetic else os.fsencode(str(image))
    for contender in request.contenders:
        hooks.stage(f"measuring the memory of {contender.name} in a process of its own")
        found.append(plan_memory(contender, request.settings, given))
    return found


def fits(memory: Sequence[Memory]) -> bool | None:
    """True where all plans fit the memory that is free, by their peaks; None where that is not known."""
    peaks = [each.peak_rss_bytes for each in memory]
    try:
        info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(info["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    known = [peak for peak in peaks if peak is not None]
    return sum(known) <= free if len(known) == len(peaks) else None
