"""The machine a result was measured on, as every result names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from vtexport.plugins.libraries import choose_library


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, system, Python, and which form of the pruning ops runs on the CPU."""
    native = choose_library()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "pruning_ops": "native library" if native.library else f"function bodies ({native.reason})",
    }


def _cpu() -> str:
    """Name, family and model: clouds shorten the name, and the numbers still tell the generation."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(errors="replace").split("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    numbers = f"family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else ""
    return ", ".join(part for part in (fields.get("model name", platform.machine()), numbers) if part)
