"""Quantities as people type them: 30s, 1h, 2/s, 5%."""

from __future__ import annotations

import argparse
import math
import re

_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(/?\s*[a-z%]*)", re.IGNORECASE)


def _split(text: str) -> tuple[float, str] | None:
    found = _NUMBER.fullmatch(text.strip())
    if not found or not (math.isfinite(value := float(found[1])) and value > 0):
        return None
    return value, found[2].replace(" ", "").lower()


def duration(text: str) -> float:
    """Seconds, above 0: `90`, `30s`, `5m`, `1h`, `500ms`."""
    found = _split(text)
    if found is None or (found[1] or "s") not in _SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give one such as 30s, 5m or 1h")
    return found[0] * _SECONDS[found[1] or "s"]


def rate(text: str) -> float:
    """Times a second, above 0: `2/s`, `30/min`, `2`."""
    found = _split(text)
    unit = found[1].removeprefix("/") or "s" if found else ""
    if found is None or unit not in _SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; give one such as 2/s or 30/min")
    return found[0] / _SECONDS[unit]


def share(text: str) -> float:
    """A share from 0: `5%` or `0.05`; more than 1 without % is refused, because 5 means most likely 5 %."""
    if text.strip() in {"0", "0%"}:
        return 0.0
    found = _split(text)
    if found is None or found[1] not in {"", "%"} or (found[1] == "" and found[0] > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give one such as 5% or 0.05")
    return found[0] / 100 if found[1] else found[0]
