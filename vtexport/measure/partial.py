"""Lines of a measurement as they come, so that an end of any kind keeps what was measured.

While a measurement runs, its header and every sample, reading and failure stand as JSON lines in `.NAME.partial`
beside the report NAME; the report is made from them and the file removed. Where a process was killed, the next
measurement that writes the same report finds the file and makes the report of that one first, under another name.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from types import TracebackType

import msgspec

from vtexport.bundle import unfinished
from vtexport.errors import InputError, quoted
from vtexport.measure.record import Header, Line, Sample


class Lines:
    """The lines of one measurement, in a file for as long as it can be written and then in memory.

    They are not kept in memory beside it: in a long soak that would look like a leak of what is measured.

    Raises:
        InputError: the folder cannot be written, or another measurement writes the same report.

    Attributes:
        header: The measurement's.
        samples: Count of answers among the lines.
        problem: Sentence on why the file could not be written any more; None while it can.
    """

    def __init__(self, report: Path, header: Header):
        self.header = header
        self.samples = 0
        self.problem: str | None = None
        self._rest: list[Line] = []  # that are not in the file
        self._written = 0  # bytes of whole lines in it
        self.path = partial_path(report)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InputError(f"{report} cannot be written ({error.strerror}); choose another -o/--output") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InputError(
                f"{report} is being measured by another process; wait for that, or choose another -o/--output"
            ) from error
        self._file.truncate(0)
        unfinished.begin(self.path, self.finish)  # until there is a sample to keep
        self._write(header)

    def add(self, line: Line) -> None:
        """Keeps one line; it is in the file, whole, when this returns without a `problem`."""
        if isinstance(line, Sample):
            unfinished.end(self.path)
            self.samples += 1
        if not self._write(line):
            self._rest.append(line)

    def all(self) -> list[Line]:
        """Every line so far, in order.

        Raises:
            InputError: the file cannot be read again.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(self._written)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read again ({error.strerror}); measure again") from error
        _, lines = _decoded(data, self.path)
        return [*lines, *self._rest]

    def finish(self) -> None:
        """Removes the file: the report is in place, or there is nothing to keep."""
        unfinished.end(self.path)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unfinished.end(self.path)
        with contextlib.suppress(OSError):  # what is left in it does not fit the disk
            self._file.close()

    def _write(self, line: Header | Line) -> bool:
        if self.problem is not None:
            return False
        try:
            data = msgspec.json.encode(line) + b"\n"
            self._file.write(data)
            self._file.flush()
            self._written += len(data)
        except OSError as error:
            self.problem = (
                f"{self.path} cannot be written ({error.strerror}); the measurement goes on in memory alone, so free "
                "some space before it ends"
            )
        return self.problem is None


def partial_path(report: Path) -> Path:
    """The file in which a measurement's lines stand until its report is written."""
    return report.with_name(f".{report.name}.partial")


def left_behind(report: Path) -> tuple[Header, list[Line]] | None:
    """The header and lines of a measurement of that report whose process was killed; None where there is none.

    Raises:
        InputError: the file that it left cannot be read, or is none of a measurement.
    """
    path = partial_path(report)
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            data = file.read()
    except (FileNotFoundError, BlockingIOError):  # nobody left anything, or it is being written
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); delete it or move it away") from error
    whole = data[: data.rfind(b"\n") + 1]
    return _decoded(whole, path) if whole else None


def _decoded(data: bytes, path: Path) -> tuple[Header, list[Line]]:
    first, *lines = data.split(b"\n")
    try:
        header = msgspec.json.decode(first, type=Header)
        return header, [msgspec.json.decode(line, type=Line) for line in lines if line]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not what a measurement leaves ({quoted(error, path)}); delete it or move it away"
        ) from error
