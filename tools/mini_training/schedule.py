"""Schedule of training: phases by progress, and clocks that say how far it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mini_training.batches import GRID, TASK_WEIGHTS, Layout, Weights

LONGEST_STEP = 4.0  # times the usual one; what is beyond it is a pause, not training


@dataclass(frozen=True)
class Phase:
    """A part of training: `share` of the whole, on one of `layouts` a step (with how often each is drawn).

    `room` is the number of text tokens a picture, 0 to train the tower alone; `vision` the tower's factor on the
    learning rate, 0 to freeze it; `rates` the factors on the learning rate at the begin and the end; `dense_weight`
    that of the losses on patches and CLS; `weights` how often each task is asked.
    """

    name: str
    share: float
    layouts: tuple[tuple[Layout, float], ...]
    room: int
    vision: float
    rates: tuple[float, float]
    dense_weight: float
    weights: Weights = field(default_factory=lambda: TASK_WEIGHTS)

    def layout(self, seed: int, step: int) -> Layout:
        choices, weights = zip(*self.layouts, strict=True)
        return random.Random(f"{seed} {step}").choices(choices, weights)[0]


def _canvases(*rows: tuple[int, int, int, float]) -> tuple[tuple[Layout, float], ...]:
    return tuple((Layout(pictures, side, shapes), weight) for pictures, side, shapes, weight in rows)


# Small canvases first: several times as many pictures in the same time, and what they teach holds for full ones.
_SMALL = _canvases((48, 9, 2, 0.15), (32, 12, 4, 0.55), (24, 15, 5, 0.3))
_FULL = _canvases((16, GRID, 6, 0.65), (20, 19, 6, 0.25), (32, 13, 4, 0.1))
# By then the other tasks are learned from small canvases; counting is what full pictures, with more objects, make hard.
_HARD: Weights = {"existence": 10, "colour": 5, "shape": 6, "counting": 55, "relation": 8, "grounding": 16}
PHASES = (
    Phase("tower", 0.18, _canvases((96, 8, 2, 0.5), (48, 12, 3, 0.5)), 0, 1.0, (1.0, 0.3), 1.0),
    Phase("tower-full", 0.015, _canvases((16, GRID, 6, 1.0)), 0, 1.0, (0.5, 0.1), 1.0),
    Phase("language", 0.26, _SMALL, 160, 0.0, (1.0, 0.4), 0.1),
    Phase("joint", 0.16, _SMALL, 200, 0.3, (0.4, 0.3), 0.25),
    Phase("full", 0.385, _FULL, 240, 0.3, (0.3, 0.0), 0.25, _HARD),
)


def phase_at(progress: float, phases: tuple[Phase, ...] = PHASES) -> tuple[int, float]:
    """The number of the phase at `progress` (0 to 1), and how far into it that is (0 to 1)."""
    start = 0.0
    total = sum(phase.share for phase in phases)
    for number, phase in enumerate(phases):
        end = start + phase.share / total
        if progress < end or number == len(phases) - 1:
            return number, min(1.0, (progress - start) / (end - start))
        start = end
    raise ValueError("no phases")


class Clock(Protocol):
    """A measure of how much of training is left, in a unit of its own."""

    def spend(self, seconds: float) -> float:
        """Takes one step that took so long; its size in the clock's unit."""

    def left(self) -> float:
        """The rest of training before that step, in the same unit; 0 or less where training is over."""


class Steps:
    """A number of steps: the same on every machine."""

    def __init__(self, total: int, done: int):
        self._left = total - done

    def spend(self, seconds: float) -> float:
        self._left -= 1
        return 1.0

    def left(self) -> float:
        return self._left


class Deadline:
    """A time of day (seconds since the epoch). The schedule is squeezed where the process was held up in between."""

    def __init__(self, end: float, now: Callable[[], float] = time.time):
        self._end, self._now = end, now
        self._usual: float | None = None

    def spend(self, seconds: float) -> float:
        usual = self._usual if self._usual is not None else seconds
        counted = min(seconds, LONGEST_STEP * usual)
        self._usual = 0.9 * usual + 0.1 * counted
        return counted

    def left(self) -> float:
        return self._end - self._now()


class Minutes(Deadline):
    """A budget of training time in seconds; time in which the process was stopped does not count."""

    def __init__(self, seconds: float):
        super().__init__(0.0)
        self._left = seconds

    def spend(self, seconds: float) -> float:
        counted = super().spend(seconds)
        self._left -= counted
        return counted

    def left(self) -> float:
        return self._left


def advance(progress: float, clock: Clock, seconds: float) -> float:
    """Progress after a step that took `seconds`: the part of what was left that it used up. Reaches 1 at the clock's
    end, whatever happened before."""
    used = clock.spend(seconds)
    left = clock.left() + used
    return 1.0 if used >= left else progress + (1 - progress) * used / left
