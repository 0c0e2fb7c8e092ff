"""Registry of what this process is writing, so that a signal that ends it leaves nothing half-written."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_unfinished: dict[Path, Callable[[], None]] = {}  # how to remove what is written at a path
_writers: set[subprocess.Popen[bytes]] = set()  # child processes that write there


def begin(path: Path, discard: Callable[[], None]) -> None:
    """Has `discard_unfinished` call `discard` for what is written at `path`, until `end`."""
    _unfinished[path] = discard


def end(path: Path) -> None:
    """Forgets what was written at `path`; nothing where it is not known."""
    _unfinished.pop(path, None)


@contextlib.contextmanager
def discarded_when_interrupted(path: Path, discard: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `discard_unfinished` calls `discard` for what is written at `path`."""
    begin(path, discard)
    try:
        yield
    finally:
        end(path)


@contextlib.contextmanager
def written_by(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While `process` writes into a staged folder: `discard_unfinished` ends it before it removes the folder."""
    _writers.add(process)
    try:
        yield
    finally:
        _writers.discard(process)


def discard_unfinished() -> bool:
    """Removes what this process has not finished writing; True where there was something.

    For a signal handler that ends the process; it may come between any two steps of a writer.
    """
    for process in _writers:
        process.kill()
        # Not Popen.wait: the code that the signal interrupted may hold the lock that it takes.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
    discards = list(_unfinished.values())
    for discard in discards:
        discard()
    return bool(discards)
