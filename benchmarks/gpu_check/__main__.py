"""Builds the CUDA kernels for this machine's GPU, checks their answers and times them.

    make gpu-check
    PYTHONPATH=.:tests:benchmarks python3 -m gpu_check --quick --only parity

Exit codes: 0 done; 1 an answer is wrong, or a part could not be finished; 3 there is no GPU, nvcc or PyTorch here.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_check import array_api

array_api.install()  # before anything imports the references

from gpu_check.build import ROOT, BuildError, Built, build  # noqa: E402
from gpu_check.environment import NotHereError, check_gpu, describe, find_tools, l2_bytes  # noqa: E402

PARTS = ("parity", "times", "model")
TIMES_SECONDS, QUICK_TIMES_SECONDS = 100.0, 20.0  # after which the PyTorch side is left out, so that all ends in time


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    begin = time.perf_counter()
    try:
        check_gpu()
        tools = find_tools()
    except NotHereError as error:
        print(error, file=sys.stderr)
        return 3
    report: dict[str, Any] = {"benchmark": "gpu_check", "quick": options.quick, "machine": describe(tools)}
    machine = report["machine"]
    print(f"{machine['gpu_name']}, driver {machine['driver']}, {machine['nvcc']}, torch {machine['torch']}", flush=True)
    try:
        built = build(tools, machine["compute_capability"], ROOT / "build" / "gpu-check")
    except (BuildError, OSError) as error:
        print(f"the kernels do not build: {error}", file=sys.stderr)
        return 1
    report["build"] = {"by": built.by, "seconds": built.seconds, "spills": list(built.spills)}
    print(f"built with {built.by} in {built.seconds:.0f} s, {len(built.spills)} kernels spill registers", flush=True)
    for spill in built.spills:
        print(f"    {spill}")
    run = {"parity": parity, "times": times, "model": model}
    failed = [part for part in options.only if not _part(part, run[part], report, built, tools, options.quick)]
    report["failed_parts"], report["seconds"] = failed, time.perf_counter() - begin
    from gpu_check.report import write

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
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)} (default: all)")
    parser.add_argument(
        "-o", "--output", type=Path, help="results file (default: benchmarks/results/, by the GPU's name)"
    )
    options = parser.parse_args(arguments)
    options.only = [part for part in options.only.split(",") if part]
    for part in options.only:
        if part not in PARTS:
            parser.error(f"--only {part} is not a part; give some of {', '.join(PARTS)}")
    return options


def _part(name: str, run: Callable[..., bool], report: dict[str, Any], built: Built, tools: Any, quick: bool) -> bool:
    """Runs a part; what stops it is reported, and the other parts still run."""
    print(f"\n{name}", flush=True)
    try:
        return run(report, built, tools, quick)
    except Exception as error:
        report[name] = {**report.get(name, {}), "error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
        return False


def parity(report: dict[str, Any], built: Built, tools: Any, quick: bool) -> bool:
    from gpu_check.device import GpuRunner
    from gpu_check.graphs import check_graph
    from gpu_check.parity import run_parity
    from gpu_check.report import parity_text
    from gpu_check.sanitize import TOOLS, sanitize

    runner = GpuRunner(built.library)
    found = run_parity(runner, quick, lambda call: check_graph(runner, call))
    found["sanitizer"] = sanitize(tools.sanitizer, built.library, TOOLS[:1] if quick else TOOLS)
    report["parity"] = found
    print(parity_text(found), flush=True)
    return bool(found["passed"]) and all(entry["outcome"] != "errors" for entry in found["sanitizer"])


def times(report: dict[str, Any], built: Built, tools: Any, quick: bool) -> bool:
    from gpu_check.ceilings import measure_ceilings
    from gpu_check.device import GpuRunner
    from gpu_check.measure import GpuClock, overhead_us
    from gpu_check.report import ceilings_text, times_text
    from gpu_check.times import run_times

    clock, runner = GpuClock(), GpuRunner(built.library)
    ceilings = measure_ceilings(clock) | {"overhead_us": overhead_us(clock)}
    print(ceilings_text(ceilings), flush=True)
    rows: list[dict[str, Any]] = []
    report["times"] = {"ceilings": ceilings, "rows": rows}
    seconds = QUICK_TIMES_SECONDS if quick else TIMES_SECONDS
    found = run_times(
        runner, ceilings, clock=clock, cache_bytes=l2_bytes(), quick=quick, seconds=seconds, device="cuda"
    )
    for row in found:
        rows.append(row)
    print(times_text(rows), flush=True)
    return not any("error" in row for row in rows)


def model(report: dict[str, Any], built: Built, tools: Any, quick: bool) -> bool:
    import torch

    from gpu_check import torch_style
    from gpu_check.device import GpuRunner, captured, selection_by
    from gpu_check.llava import Shape, make_llava
    from gpu_check.measure import GpuClock
    from gpu_check.model import SCENES, run_scene
    from gpu_check.report import model_text

    llava = make_llava(Shape(), "cuda", torch.float16)
    select = selection_by(GpuRunner(built.library), llava.shape.grid)

    def style(features: Any, scores: Any, keep: int) -> Any:
        return torch_style.prunesid({"features": features, "scores": scores}, keep)

    rows: list[dict[str, Any]] = []
    report["model"] = {"method": "prunesid", "dtype": "float16", "shape": vars(llava.shape), "rows": rows}
    for scene in SCENES:
        rows += run_scene(
            llava,
            scene,
            select,
            style=style,
            clock=GpuClock(),
            capture=lambda run: captured(run).replay,
            samples=15 if quick else 50,
        )
    print(model_text(rows), flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
