"""Running a program for so many seconds at most, and ending all of it: what it has started may be using the GPU."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path


def run_within(
    seconds: float, command: list[str], *, quiet: bool = False, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """The exit code, None where it was ended for taking too long, and with `quiet` what it printed."""
    pipe = subprocess.PIPE if quiet else None
    process = subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT if quiet else None, text=True, env=environment
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output or ""
    except BaseException as error:
        _kill([process.pid, *descendants(process.pid)])
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None, ""


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and that those have, from Linux's /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything; behind it are the state and the parent.
            parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [process]
    while todo:
        own = children.get(todo.pop(), [])
        found += own
        todo += own
    return found


def _kill(processes: list[int]) -> None:
    for each in processes:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
