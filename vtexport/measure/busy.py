"""Two measurements at once on one machine slow each other: a lock file among the temporary ones, and warnings."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from types import TracebackType

_NAME = "vtexport-bench.lock"


class OnlyMeasurement:
    """A mark that this process measures, held in a `with` block.

    Attributes:
        warnings: At the beginning, that another process measures; `look` adds those that began since.
    """

    def __init__(self, folder: Path | None = None):
        self.path = (folder or Path(tempfile.gettempdir())) / _NAME
        self.warnings: list[str] = []
        self._file: int | None = None
        self._holds = False

    def __enter__(self) -> OnlyMeasurement:
        try:
            self._file = self._open()
        except OSError as error:
            self.warnings.append(f"whether another measurement runs here is not known ({self.path}: {error.strerror})")
            return self
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._holds = True
            os.ftruncate(self._file, 0)
        except BlockingIOError:
            running = self._others()
            of = f" (process {', '.join(map(str, running))})" if running else ""
            self.warnings.append(f"another measurement runs on this machine{of}; the two slow each other")
        with contextlib.suppress(OSError):  # a full disk: the lock itself holds
            os.write(self._file, f"{os.getpid()}\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def look(self) -> list[str]:
        """All warnings, with one on measurements that began while this one ran."""
        if self._holds and (began := self._others()):
            of = ", ".join(map(str, began))
            self.warnings.append(f"another measurement began on this machine (process {of}); the two slow each other")
            self._holds = False  # said once
        return self.warnings

    def _open(self) -> int:
        """The file for appending; whoever makes it leaves it writable for the others' processes."""
        with contextlib.suppress(FileNotFoundError):
            return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o666)  # whatever the umask
        return descriptor

    def _others(self) -> list[int]:
        assert self._file is not None
        size = min(os.fstat(self._file).st_size, 4096)
        lines = os.pread(self._file, size, 0).decode(errors="replace").split()
        noted = dict.fromkeys(int(line) for line in lines if line.isdecimal())
        return [number for number in noted if number != os.getpid() and _runs(number)]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
