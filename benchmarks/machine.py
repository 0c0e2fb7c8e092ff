"""The machine a result was measured on, as every results file names it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def describe(threads: int | None, packages: Sequence[str]) -> dict[str, Any]:
    """CPU, cores, threads given to the libraries, load, system, versions and date."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load_average": os.getloadavg(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """Name, family and model: clouds shorten the name, and the numbers still tell the generation."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    widest = "AVX-512" if "avx512f" in fields.get("flags", "") else "AVX2" if "avx2" in fields.get("flags", "") else ""
    numbers = f"family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else ""
    return ", ".join(part for part in (fields.get("model name", platform.machine()), numbers, widest) if part)
