"""A time that tests move, and a stand-in of a pipeline whose answers take some of it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from vtexport.errors import InputError
from vtexport.runtime.answers import Answer, AnswerStream
from vtexport.watch.frames import Frame, Source
from vtexport.watch.time import RealTime

BEGAN = 1_800_000_000.0  # seconds since 1970


class MovedTime(RealTime):
    """Stands still until something takes time."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return self.passed

    def wall(self) -> float:
        return BEGAN + self.passed

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.passed += seconds


class SlowPipeline:
    """Answers with as many tokens as are asked for, each a letter: `first` seconds to the first, `each` for others.

    Attributes:
        asked: Images and prompts that came.
        closed: Answers that were left before their end.
    """

    def __init__(self, time: MovedTime, first: float = 0.0, each: float = 0.0):
        self.time, self.first, self.each = time, first, each
        self.asked: list[tuple[Any, str]] = []
        self.closed = 0
        self.refuses: set[int] = set()  # numbers of calls

    def stream(self, image: Any, prompt: str, max_new_tokens: int | None = None) -> AnswerStream:
        self.asked.append((image, prompt))
        if len(self.asked) - 1 in self.refuses:
            raise InputError("this image is none; give another")
        self.time.passed += self.first
        return AnswerStream(self._pieces(max_new_tokens or 3))

    def _pieces(self, most: int) -> Generator[str | Answer, bool | None, None]:
        text, reason = "", "length"
        try:
            for number in range(most):
                if number:
                    self.time.passed += self.each
                text += "abcdefghij"[number]
                if (yield text[-1]):
                    reason = "stop_string" if number + 1 < most else "length"
                    break
        except GeneratorExit:
            self.closed += 1
            raise
        yield ""
        yield Answer(text, list(range(len(text))), reason, 20, 16, [], {"total": 1.0}, "plan")  # type: ignore[arg-type]


class Scripted(Source):
    """Frames that are there at given seconds, of which the newest is given."""

    def __init__(self, time: MovedTime, frames: list[tuple[float, Any]], step: float = 0.01):
        self.time, self.frames, self.step, self.at = time, frames, step, 0
        self.closed = False

    def newest(self, seconds: float) -> Frame | None:
        end = self.time.now() + seconds
        while True:
            due = [number for number, (at, _) in enumerate(self.frames) if number >= self.at and at <= self.time.now()]
            if due:
                self.dropped += len(due) - 1
                self.at = due[-1] + 1
                at, image = self.frames[due[-1]]
                return Frame(image, due[-1], at, BEGAN + at)
            if self.at >= len(self.frames):
                self.ended = True
                return None
            if self.time.now() >= end:
                return None
            self.time.sleep(self.step)

    def close(self) -> None:
        self.closed = True
