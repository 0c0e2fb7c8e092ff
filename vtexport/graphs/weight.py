"""A weight as graphs name it: bytes in a file of the bundle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A tensor in one of the bundle's weight files; `file` is its name, `offset` counts from the start of the file."""

    file: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    beside: bool = False  # in the graphs' own folder, instead of the one for weights below it
