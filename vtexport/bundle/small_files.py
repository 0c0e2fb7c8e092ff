"""Small JSON files that stand beside a bundle's manifest, read with one reason where they cannot be."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TypeVar

import msgspec

Value = TypeVar("Value")


class UnreadableError(Exception):
    """The reason why a file cannot be used, for a sentence that also names the file and the next step."""


def read_bounded(path: Path, most: int) -> bytes:
    """Bytes of a plain file of at most `most` bytes: a pipe would be waited for for ever, a hole fill the memory.

    Raises:
        UnreadableError: it is not there, no plain file, longer, or may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError("it is not a plain file")
        with path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    if len(data) > most:
        raise UnreadableError(f"it has more than {most} bytes")
    return data


def decode_json(data: bytes, of: type[Value]) -> Value:
    """The value that JSON text describes.

    Raises:
        UnreadableError: it is not JSON, or of another form.
    """
    try:
        return msgspec.json.decode(data, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(str(error)) from error
