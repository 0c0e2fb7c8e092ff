"""Seam between what reads electric power and what integrates it, and the choice of a rail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vtexport.errors import UsageError, VtexportError

PERIOD_S = 0.1  # between readings, unless a source cannot or the user says otherwise
PLUS = "+"  # joins the rails that are added up


class ReadingError(VtexportError):
    """A source that could be read gives no reading now."""


@dataclass(frozen=True)
class Reading:
    """One reading, either of power or of a counter of energy.

    Attributes:
        at: Seconds of `time.perf_counter`.
        watts: Power at that time.
        joules: Energy since some time before; it never falls.
    """

    at: float
    watts: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        if (self.watts is None) == (self.joules is None):
            raise ValueError(f"a reading is of watts or of joules, not {self.watts!r} and {self.joules!r}")


@dataclass(frozen=True)
class NoPower:
    """Power that cannot be read here.

    Attributes:
        reason: One sentence on what was looked for and why it cannot be read.
    """

    reason: str


class PowerSource(Protocol):
    """A sensor that can be read now.

    Attributes:
        name: "ina3221", "tegrastats", "nvml" or "rapl".
        rails: The rails that it has.
        rail: The rail that `read` gives, or several of them joined with "+", whose powers are added up.
        period_s: Seconds between readings that are of use.
    """

    name: str
    rails: list[str]
    rail: str
    period_s: float

    def read(self) -> Reading:
        """The newest reading of `rail`; may wait for one, up to a few periods.

        Raises:
            ReadingError: there is none.
        """

    def close(self) -> None:
        """Gives files and processes back; a closed source is read no more."""


def split_rail(rail: str, rails: Sequence[str]) -> list[str] | None:
    """The rails that a user's text names, one or several joined with "+"; None where one of them is not among `rails`.

    Each counts once.
    """
    named = list(dict.fromkeys(each.strip() for each in rail.split(PLUS)))
    return named if set(named) <= set(rails) else None


def unknown_rail(rail: str, rails: Sequence[str]) -> UsageError:
    """The error about a rail that no source has."""
    return UsageError(
        f"there is no power rail {rail!r} here; give --rail one of {', '.join(rails)}, "
        f"or several joined with {PLUS} to add them up"
    )
