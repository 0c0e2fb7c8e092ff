"""The source of power that a measurement on this machine takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vtexport.measure.power.base import PLUS, NoPower, PowerSource, Reading, ReadingError, split_rail, unknown_rail
from vtexport.measure.power.jetson import find_ina3221, find_tegrastats
from vtexport.measure.power.nvml import find_nvml
from vtexport.measure.power.rapl import find_rapl
from vtexport.measure.power.sampler import Energy, PowerSampler

__all__ = ["Energy", "NoPower", "PowerSampler", "PowerSource", "Reading", "ReadingError", "open_power"]

Look = Callable[[], "PowerSource | NoPower"]


def open_power(rail: str | None = None, device: str = "cpu", root: Path = Path("/")) -> PowerSource | NoPower:
    """The first source here that has the rail, ready to be read; close it when done.

    Looked for in this order: the monitors of a Jetson, its tegrastats, then the counters of what computes: the
    processor's before the GPU's for "cpu", the GPU's first for "cuda". On a Jetson the default rail is the board's or
    the module's whole input, on the others the device alone.

    Args:
        rail: a rail's name, or several joined with "+" to be added up; the source's default when None.
        device: "cpu" or "cuda", as for a backend.
        root: below which the system's files are looked for.

    Raises:
        UsageError: sources are there and none has the rail; the message names the rails there are.
    """
    looks: list[Look] = [lambda: find_ina3221(root), find_tegrastats]
    counters: list[Look] = [lambda: find_rapl(root), find_nvml]
    looks += counters if device == "cpu" else reversed(counters)
    return choose_source(looks, rail)


def choose_source(looks: list[Look], rail: str | None) -> PowerSource | NoPower:
    """The first source that can be read and has the rail; the others are closed.

    Raises:
        UsageError: as `open_power`.
    """
    reasons: list[str] = []
    rails: dict[str, None] = {}
    for look in looks:
        source = look()
        if isinstance(source, NoPower):
            reasons.append(source.reason)
            continue
        rails |= dict.fromkeys(source.rails)
        chosen = None if rail is None else split_rail(rail, source.rails)
        if chosen:
            source.rail = PLUS.join(chosen)
        if chosen or (rail is None and source.rail):
            return source
        source.close()
        if rail is None:
            known = ", ".join(source.rails)
            reasons.append(f"{source.name} has {known}, none of which is known to be the whole (name some with --rail)")
    if rails and rail is not None:
        raise unknown_rail(rail, list(rails))
    return NoPower(f"no power can be read: {'; '.join(reasons)}")
