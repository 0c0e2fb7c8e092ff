"""Progress of a build, as it tells its caller."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BuildProgress:
    """Functions that a build calls as it goes on; every member may be replaced, by default it is silent."""

    stage: Callable[[str], None] = lambda text: None
    note: Callable[[str], None] = lambda text: None
    # A context manager around something of `total` bytes; it gives the function to call with each count done.
    bytes_done: Callable[[str, int], AbstractContextManager[Callable[[int], object]]] = field(
        default=lambda text, total: nullcontext(lambda count: None)
    )
