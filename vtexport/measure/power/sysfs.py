"""Numbers in files of the kernel's sysfs, which are read anew without opening them again."""

from __future__ import annotations

import os
from pathlib import Path

from vtexport.errors import quoted
from vtexport.measure.power.base import ReadingError


class NumberFile:
    """A file with one whole number, kept open.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """The number that it holds now.

        Raises:
            ReadingError: it cannot be read, or holds something else.
        """
        try:
            # From the first byte on, sysfs asks the driver again.
            return int(os.pread(self._descriptor, 64, 0))
        except (OSError, ValueError) as error:
            raise ReadingError(f"{self.path} gives no number: {quoted(error, self.path)}") from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def text_of(path: Path) -> str | None:
    """The text of a small file without the line's end; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """The whole number in a file; None where it cannot be read or is none."""
    try:
        return int(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None


def natural(path: Path) -> tuple[int, str]:
    """Sorting key by the number at the end of a file's name, so that hwmon10 comes after hwmon9."""
    digits = path.name[len(path.name.rstrip("0123456789")) :]
    return int(digits or -1), path.name
