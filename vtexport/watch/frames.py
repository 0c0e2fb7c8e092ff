"""Frames, and the place in which the newest of them waits: a frame that nobody took goes when the next one comes."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from vtexport.runtime.vision import ImageLike

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    Attributes:
        image: As `Pipeline.stream` takes it; arrays are [H, W, 3] uint8, RGB.
        number: Counted from 0 over all frames of the source, whether anybody took them or not.
        captured: When it came, in seconds of `RealTime.now`.
        wall: The same, in seconds since 1970 in UTC.
        name: Of its file, where it has one.
        position: Seconds from the beginning of a recording; None of what is live.
    """

    image: ImageLike
    number: int
    captured: float
    wall: float
    name: str | None = None
    position: float | None = None


class Source(ABC):
    """Gives the newest frame, and never one twice.

    Attributes:
        dropped: Frames so far that a newer one replaced before anybody took them.
        ended: True when no further frame comes.
    """

    dropped: int = 0
    ended: bool = False

    @abstractmethod
    def newest(self, seconds: float) -> Frame | None:
        """The newest frame that was not taken yet; None where none comes within `seconds`.

        Raises:
            InputError: the source has failed.
        """

    def close(self) -> None:  # noqa: B027 (most sources have nothing to give back)
        """Gives the device or the file back."""


class Newest(Generic[T]):
    """A place for one value, from one thread to another: a new value replaces one that nobody took.

    Attributes:
        replaced: How many were.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._value: T | None = None
        self.replaced = 0

    def put(self, value: T) -> None:
        """Puts a value in the place of what is there."""
        with self._changed:
            self.replaced += self._value is not None
            self._value = value
            self._changed.notify()

    def take(self, seconds: float = 0.0) -> T | None:
        """Takes the value out; None where none comes within `seconds`."""
        with self._changed:
            if self._value is None and seconds > 0:
                self._changed.wait(seconds)
            value, self._value = self._value, None
            return value

    @property
    def full(self) -> bool:
        """True while a value waits."""
        with self._changed:
            return self._value is not None
