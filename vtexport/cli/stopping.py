"""Ctrl-C and a polite kill for a verb that keeps what it has: asked once it stops, asked twice it ends at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from vtexport.cli.main import interrupt

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked_to_stop(has_something: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Gives a function that is True once a signal came in the block.

    While `has_something` is False there is nothing to keep, and a signal ends the process at once.

    Only the command line's own handler is replaced: in a program that calls `main`, handlers stay as they are.
    """
    came = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        if came or not has_something():
            interrupt(signum, frame)
        came = True

    replaced = [number for number in _SIGNALS if signal.getsignal(number) is interrupt]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        for number in replaced:
            signal.signal(number, interrupt)
