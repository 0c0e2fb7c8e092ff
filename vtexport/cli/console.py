"""Output of the verbs: results on stdout, progress on stderr, numbers for people."""

from __future__ import annotations

import codecs
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from vtexport.errors import VtexportError, quoted

_SECONDS_BETWEEN_LINES = 10.0
_VISIBLE = "backslashreplace"


def prepare_streams() -> None:
    """Makes stdout and stderr take every text: a character that the encoding cannot show is written as an escape.

    A stream that was closed (`>&-`) becomes a sink. Without it the next file opened would have its number, and what a
    library prints would go into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    # What Python found closed when it started is None, for it and for us.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A program that calls `main` may have put in something else.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape", "surrogatepass"}:
            stream.reconfigure(errors=_VISIBLE)


def typed_text(argument: str) -> str:
    """An argument that is text as it was typed: its bytes are UTF-8 also where the locale's encoding is another."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:  # bytes that the locale's encoding does not have came as surrogates
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeError:
            pass  # whoever reads the text says what is wrong with it
    return argument


def say(text: str = "", end: str = "\n") -> None:
    """A line of a result.

    Raises:
        BrokenPipeError: nobody reads the results any more.
        VtexportError: they cannot be written, as on a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        reason = quoted(error.strerror or error)
        raise VtexportError(f"the results cannot be written to stdout ({reason}); send them elsewhere") from error


def tell(text: str = "", end: str = "\n") -> None:
    """A line about the work; never mixed into results. Where it cannot be shown, the work goes on."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:  # whoever read about the progress has gone, or the disk is full
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Turns a stream that cannot be written into a sink, so that what is left in it raises nothing at the end."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, stream.fileno())
    os.close(sink)


def say_json(value: Any, indent: int | None = 2) -> None:
    """A result as JSON, keys sorted, on one line without `indent`: UTF-8, or escapes in another encoding of stdout."""
    # Lone surrogates, which stand for stray bytes, are left to the stream: its escapes for them are JSON's.
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    say(json.dumps(value, ensure_ascii=not is_utf8, indent=indent, sort_keys=True))


def command_line(program: str = "vtexport") -> str:
    """The command as it was given, for records of what was done; stray bytes in it are escapes."""
    return shlex.join([program, *sys.argv[1:]]).encode(errors=_VISIBLE).decode()


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Columns as wide as their longest cell; numbers are right-aligned by the caller's formatting."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def size(count: float) -> str:
    """Bytes for people: 1,234,567 -> 1.2 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counted(count: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class Progress:
    """Stages with the time since the start, and a bar for bytes when stderr is a terminal."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._start = time.perf_counter()

    def stage(self, text: str) -> None:
        """A new step of the work."""
        if not self._quiet:
            tell(f"[{time.perf_counter() - self._start:6.1f} s] {text}")

    def note(self, text: str) -> None:
        """Something the user should know; shown even when quiet."""
        tell(f"note: {text}")

    def bytes_done(self, text: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
        """Gives the function to call with each count of bytes done: a bar on a terminal, else a line now and then."""
        return self._done(text, total, size, {"unit": "B", "unit_scale": True})

    def items_done(self, text: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], object]]:
        """The same for things that are counted one by one."""
        return self._done(text, total, str, {"unit": f" {unit}"})

    @contextmanager
    def _done(
        self, text: str, total: int, shown: Callable[[int], str], unit: dict[str, Any]
    ) -> Iterator[Callable[[int], object]]:
        if self._quiet:
            yield lambda count: None
        elif not sys.stderr.isatty():
            yield self._lines(text, total, shown)
        else:
            with tqdm(total=total, desc=text, file=sys.stderr, leave=False, **unit) as bar:
                yield bar.update

    def _lines(self, text: str, total: int, shown: Callable[[int], str]) -> Callable[[int], None]:
        done, last = 0, time.perf_counter()

        def count_up(count: int) -> None:
            nonlocal done, last
            done += count
            if time.perf_counter() - last > _SECONDS_BETWEEN_LINES:
                last = time.perf_counter()
                self.stage(f"{text}: {shown(done)} of {shown(total)}")

        return count_up
