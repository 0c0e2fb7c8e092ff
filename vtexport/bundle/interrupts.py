"""Registry of what this process has not finished writing, so that a signal that ends the process can remove it.

A handler may run between any two steps of the code that it interrupts: what is written is registered before it is
there, and stays registered until it has gone or has its name.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_unfinished: dict[Path, Callable[[], None]] = {}  # what is being written, and how to remove it
_writers: set[subprocess.Popen[bytes]] = set()  # child processes that write there


def register(path: Path, discard: Callable[[], None]) -> None:
    """From here on `discard_unfinished` calls `discard` for what is written at `path`."""
    _unfinished[path] = discard


def forget(path: Path) -> None:
    """Nothing at `path` is unfinished any more."""
    _unfinished.pop(path, None)


@contextlib.contextmanager
def discarded_when_interrupted(path: Path, discard: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `discard_unfinished` calls `discard` for what is written at `path`."""
    register(path, discard)
    try:
        yield
    finally:
        forget(path)


@contextlib.contextmanager
def written_by(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While `process` writes something unfinished: `discard_unfinished` ends it before it removes that."""
    _writers.add(process)
    try:
        yield
    finally:
        _writers.discard(process)


def discard_unfinished() -> bool:
    """Removes what this process has not finished writing, and says whether there was something.

    For a signal handler that ends the process.
    """
    for process in _writers:
        process.kill()
        # Not Popen.wait: the code that the signal interrupted may hold the lock that it takes.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
    unfinished = list(_unfinished.values())
    for discard in unfinished:
        discard()
    return bool(unfinished)
