"""compute-sanitizer's memory and race checkers over small inputs, where the tool is there."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from gpu_check.build import ROOT
from gpu_check.processes import run_within

TOOLS = ("memcheck", "racecheck")
FOUND = 86  # compute-sanitizer's exit code when it has found something
SECONDS = 60.0  # for each tool; a checker that takes longer is reported as unfinished, not as clean


def sanitize(sanitizer: Path | None, library: Path, tools: tuple[str, ...] = TOOLS) -> list[dict[str, Any]]:
    """One entry a tool: outcome "clean", "errors", "unfinished", "absent" or "failed", with the end of its output."""
    if sanitizer is None:
        return [{"tool": tool, "outcome": "absent", "seconds": 0.0, "output": ""} for tool in tools]
    return [_run(sanitizer, tool, library) for tool in tools]


def _run(sanitizer: Path, tool: str, library: Path) -> dict[str, Any]:
    driver = [sys.executable, "-m", "gpu_check.tiny_driver", str(library)]
    command = [str(sanitizer), "--tool", tool, "--error-exitcode", str(FOUND), *driver]
    paths = [str(ROOT), str(ROOT / "tools"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start = time.perf_counter()
    try:
        code, output = run_within(SECONDS, command, quiet=True, environment=environment)
        outcome = "unfinished" if code is None else outcome_of(code, output)
    except OSError as error:
        output, outcome = str(error), "failed"
    tail = "\n".join(output.strip().split("\n")[-40:])
    return {"tool": tool, "outcome": outcome, "seconds": time.perf_counter() - start, "output": tail}


def outcome_of(code: int, output: str) -> str:
    """What a run says. A tool that cannot work on this GPU or driver ends without its summary: "failed"."""
    if "ERROR SUMMARY" not in output and "RACECHECK SUMMARY" not in output:
        return "failed"
    return "clean" if code == 0 else "errors"
