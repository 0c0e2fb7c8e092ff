"""Processes that work alongside this one and end with it, however it ends and whatever they are at.

An interrupted run says so and leaves at once (`vtexport.cli.main`), so nothing of it can tell its workers to stop
later. They are joblib's (loky) and look for work alone: one that has none waits for more, and one that is still
starting finds its task and does all of it. So a worker asks the kernel to be killed with its parent before it does
anything else, and ends where it is too late for that; `end_workers` takes care of those that have not got so far.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from vtexport.errors import MissingDependencyError, quoted

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def worker_pool(processes: int) -> Iterator[Any]:
    """An executor of so many processes (`submit` gives futures); at the end of the block none is left.

    Raises:
        MissingDependencyError: joblib is not installed.
    """
    check_joblib()
    from multiprocessing import resource_tracker

    from joblib.externals.loky import ProcessPoolExecutor

    with _interrupted_afterwards(), _quiet_cleaner():
        # Where loky must start this one in `submit`, it lets signals through again before the workers start.
        resource_tracker.ensure_running()
        pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield _Pool(pool)
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def check_joblib() -> None:
    """Refuses several processes where joblib is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import joblib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"several processes take joblib, which is not installed ({quoted(error)}); run pip install "
            "'vtexport[jobs]' or leave --jobs out"
        ) from error


def end_workers() -> None:
    """Kills the workers of this process, for one that is about to leave without unwinding; records are kept whole."""
    if "multiprocessing" not in sys.modules:  # there are none, and an interrupted process imports nothing
        return
    from multiprocessing import active_children

    for worker in active_children():
        if worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)


class _Pool:
    """The executor, whose processes start at the first `submit` of each, undisturbed."""

    def __init__(self, pool: Any):
        self._pool = pool

    def submit(self, *call: Any) -> Any:
        with _interrupted_afterwards():
            return self._pool.submit(*call)


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C and a polite kill wait for the end of the block.

    A worker whose parent leaves amid its start prints a stack trace, and so does one that gets the terminal's Ctrl-C
    before it can say that it does not want it. So they are blocked too: a started process inherits that, and `_begin`
    ends it.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    came: list[int] = []  # signals

    def later(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.signal(number, later) for number in _INTERRUPTS}
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for late in came:
            signal.raise_signal(late)


@contextlib.contextmanager
def _quiet_cleaner() -> Iterator[None]:
    """The process that cleans up after an ended one starts in the block, and does it without a warning."""
    before = os.environ.get("PYTHONWARNINGS")
    rule = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
    os.environ["PYTHONWARNINGS"] = f"{before},{rule}" if before else rule
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _begin(parent: int) -> None:
    """The first thing that a worker does. Ctrl-C reaches every process of a terminal, and the parent answers it."""
    import ctypes

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The signal comes when the thread ends that started this process: `worker_pool` outlives no thread.
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
