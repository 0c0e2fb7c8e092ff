"""Builds the CUDA kernels for this machine's GPU, checks their answers and times them.

    make gpu-check
    PYTHONPATH=.:tools:benchmarks python3 -m gpu_check --quick --only parity

Exit codes: 0 done; 1 an answer is wrong, or a part could not be finished; 3 there is no GPU, nvcc or PyTorch here, or
the driver is too old for this nvcc.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_check import array_api

array_api.install()  # before anything imports the references

from gpu_check.build import ROOT, BuildError, build  # noqa: E402
from gpu_check.environment import NotHereError, check_driver, check_gpu, find_tools  # noqa: E402
from gpu_check.parts import PARTS, RUN  # noqa: E402
from gpu_check.processes import run_within  # noqa: E402
from gpu_check.report import targets_text, times_text, write  # noqa: E402
from gpu_check.targets import targets  # noqa: E402

# For everything, and for each part, so that one that hangs leaves the others their time. A part that is not done by
# then is stopped, and what it has found so far stays.
SECONDS = 470.0
PART_SECONDS = {"machine": 60.0, "parity": 180.0, "times": 170.0, "model": 90.0}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.part:
        return run_part(options)
    begin = time.perf_counter()
    try:
        check_gpu()
        tools = find_tools()
        check_driver(tools)
    except NotHereError as error:
        print(error, file=sys.stderr)
        return 3
    folder = ROOT / "build" / "gpu-check"
    folder.mkdir(parents=True, exist_ok=True)
    machine = part_in_process("machine", Path(), folder, options.quick, PART_SECONDS["machine"])
    if not machine.pop("done"):
        print(f"the GPU does not answer: {machine['error']}", file=sys.stderr)
        return 1
    report: dict[str, Any] = {"benchmark": "gpu_check", "quick": options.quick, "machine": machine}
    print(f"{machine['gpu_name']}, driver {machine['driver']}, {machine['nvcc']}, torch {machine['torch']}", flush=True)
    try:
        built = build(tools, machine["compute_capability"], folder)
    except (BuildError, OSError) as error:
        print(f"the kernels do not build: {error}", file=sys.stderr)
        return 1
    report["build"] = {"by": built.by, "seconds": built.seconds, "spills": list(built.spills)}
    print(f"built with {built.by} in {built.seconds:.0f} s, {len(built.spills)} kernels spill registers", flush=True)
    for spill in built.spills:
        print(f"    {spill}")
    failed = []
    for part in options.only:
        print(f"\n{part}", flush=True)
        left = min(PART_SECONDS[part], SECONDS - (time.perf_counter() - begin))
        found = part_in_process(part, built.library, folder, options.quick, left)
        report[part] = found
        if not found["done"]:
            failed.append(part)
            if part == "times" and "stopped" in found.get("error", "") and found.get("rows"):
                print(times_text(found["rows"]), flush=True)
        report |= {"failed_parts": failed, "seconds": time.perf_counter() - begin}
        path = write(report, ROOT / "benchmarks" / "results", options.output)
    report["targets"] = targets(report)
    print(f"\n{targets_text(report['targets'])}")
    path = write(report, ROOT / "benchmarks" / "results", options.output)
    print(f"\n{report['seconds']:.0f} s in all, written to {path}")
    if failed:
        print(f"not all is well: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases and sizes: a minute or two")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="results file (default: in benchmarks/results/, by the GPU)")
    parser.add_argument("--part", choices=RUN, help=argparse.SUPPRESS)  # what a process of its own is to do
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = [part for part in options.only.split(",") if part]
    for part in options.only or [""]:
        if part not in PARTS:
            parser.error(f"--only {part} is not a part; give some of {', '.join(PARTS)}")
    return options


def part_in_process(part: str, library: Path, folder: Path, quick: bool, seconds: float) -> dict[str, Any]:
    """What a part found; "done" is False where an answer is wrong or it could not be finished, which "error" says."""
    output = folder / f"{part}.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "gpu_check", "--part", part, "--library", str(library), "-o", str(output)]
    code, _ = run_within(max(1.0, seconds), [*command, *(["--quick"] if quick else [])])
    error = f"{part} ended with exit code {code}" if code not in (0, 1) else None
    if code is None:
        error = f"{part} was stopped after {max(1.0, seconds):.0f} seconds"
    found: dict[str, Any] = {"done": False}
    if output.exists():
        found |= json.loads(output.read_text())
    if error:
        print(error, file=sys.stderr)
        found |= {"done": False, "error": error}
    return found


def run_part(options: argparse.Namespace) -> int:
    """The part itself, in its process: 0 where it is done and all is right, else 1."""
    report: dict[str, Any] = {}

    def save() -> None:
        """Whole or not at all, since this process may be stopped."""
        beside = options.output.with_suffix(".new")
        beside.write_text(json.dumps(report.get(options.part, {})))
        beside.replace(options.output)

    try:
        done = RUN[options.part](report, options.library, find_tools(), options.quick, save)
    except Exception as error:
        traceback.print_exc()
        report.setdefault(options.part, {})["error"] = f"{type(error).__name__}: {error}"
        done = False
    report[options.part]["done"] = done
    save()
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
