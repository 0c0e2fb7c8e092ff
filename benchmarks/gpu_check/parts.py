"""The parts of gpu-check, each run in a process of its own: a fault of one is not a fault of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_check.environment import Tools, describe, l2_bytes

PARTS = ("parity", "times", "model")
TIMES_SECONDS, QUICK_TIMES_SECONDS = 100.0, 20.0  # after which the PyTorch side is left out, so that all ends in time
# By its sizes: 14 GB of weights in float16, and keys, values and activations of 2,940 rows, for a call and its graph.
MODEL_BYTES = 20e9
SAVE_EVERY = 10  # rows
Save = Callable[[], None]


def parity(report: dict[str, Any], library: Path, tools: Tools, quick: bool, save: Save) -> bool:
    from gpu_check.device import GpuRunner
    from gpu_check.graphs import check_graph
    from gpu_check.parity import run_parity
    from gpu_check.report import parity_text, sanitizer_text
    from gpu_check.sanitize import TOOLS, sanitize

    runner = GpuRunner(library)
    found = run_parity(runner, quick, lambda call: check_graph(runner, call))
    report["parity"] = found
    save()
    print(parity_text(found), flush=True)
    found["sanitizer"] = sanitize(tools.sanitizer, library, TOOLS[:1] if quick else TOOLS)
    print(sanitizer_text(found["sanitizer"]), flush=True)
    return bool(found["passed"]) and all(entry["outcome"] != "errors" for entry in found["sanitizer"])


def times(report: dict[str, Any], library: Path, tools: Tools, quick: bool, save: Save) -> bool:
    from gpu_check.ceilings import measure_ceilings
    from gpu_check.device import GpuRunner
    from gpu_check.measure import GpuClock, overhead_us
    from gpu_check.report import ceilings_text, times_text
    from gpu_check.times import run_times

    clock, runner = GpuClock(), GpuRunner(library)
    ceilings = measure_ceilings(clock) | {"overhead_us": overhead_us(clock)}
    print(ceilings_text(ceilings), flush=True)
    rows: list[dict[str, Any]] = []
    report["times"] = {"ceilings": ceilings, "rows": rows}
    seconds = QUICK_TIMES_SECONDS if quick else TIMES_SECONDS
    request = {"clock": clock, "cache_bytes": l2_bytes(), "quick": quick, "seconds": seconds, "device": "cuda"}
    for row in run_times(runner, ceilings, **request):
        rows.append(row)
        if len(rows) % SAVE_EVERY == 0:
            save()
    print(times_text(rows), flush=True)
    return not any("error" in row for row in rows)


def model(report: dict[str, Any], library: Path, tools: Tools, quick: bool, save: Save) -> bool:
    import torch

    from gpu_check import torch_style
    from gpu_check.device import GpuRunner, captured, selection_by
    from gpu_check.llava import Shape, make_llava
    from gpu_check.measure import GpuClock
    from gpu_check.model import SCENES, run_scene
    from gpu_check.report import model_text

    free, _ = torch.cuda.mem_get_info()
    if free < MODEL_BYTES:
        left_out = (
            f"left out: the model of 7B shape wants {MODEL_BYTES / 1e9:.0f} GB of GPU memory, and {free / 1e9:.0f} GB "
            "are free"
        )
        print(left_out, flush=True)
        report["model"] = {"left_out": left_out, "rows": []}
        return True
    llava = make_llava(Shape(), "cuda", torch.float16)
    select = selection_by(GpuRunner(library), llava.shape.grid)

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
        save()
    print(model_text(rows), flush=True)
    return True


def machine(report: dict[str, Any], library: Path, tools: Tools, quick: bool, save: Save) -> bool:
    """Description of the machine: in a process of its own too, so that only one process at a time holds the GPU."""
    report["machine"] = describe(tools)
    return True


RUN: dict[str, Callable[..., bool]] = {"machine": machine, "parity": parity, "times": times, "model": model}
