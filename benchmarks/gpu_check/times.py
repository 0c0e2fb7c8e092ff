"""Times of every op: the kernels replayed from CUDA graphs over rotating inputs, beside PyTorch on the same GPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from native_ops.calls import Call, Prepared

from gpu_check import torch_style
from gpu_check.ceilings import floor_of
from gpu_check.measure import call_us, replay_us, summary
from gpu_check.workloads import Workload, encoder_inputs, encoder_workload_call, encoder_workloads, step_workloads

SAMPLES, QUICK_SAMPLES = 240, 60
FEWEST_COPIES, MOST_COPIES = 4, 96
TORCH_SAMPLES, TORCH_SECONDS = 7, 0.4
TORCH_TOO_SLOW = 1.5e6  # microseconds
REFERENCE_AT = (576, 64, 1)  # tokens, budget and batch at which the float64 reference is timed too: it is slow


def rotating(runner: Any, call: Call, cache_bytes: int) -> list[Prepared]:
    """The call on so many copies of its inputs that together they are twice the cache; one workspace for all."""
    first = runner.prepare(call, poison=0)
    copies = [first]
    own = sum(each.nbytes for each in call.inputs.values())
    for _ in range(min(MOST_COPIES, max(FEWEST_COPIES, -(-2 * cache_bytes // own))) - 1):
        buffers = {name: buffer.clone() for name, buffer in first.buffers.items()}
        addresses = {name: runner.address(buffer) for name, buffer in buffers.items()}
        copies.append(dataclasses.replace(first, buffers=buffers, addresses=addresses))
    return copies


def time_call(runner: Any, call: Call, *, count: int, clock: Any, cache_bytes: int) -> dict[str, Any]:
    """Microseconds of one replay at a time, and of one call in a graph of all copies."""
    copies = rotating(runner, call, cache_bytes)
    graphs = [runner.captured([copy]) for copy in copies]
    single = summary(replay_us([graph.replay for graph in graphs], count, clock))
    chain = runner.captured(copies)
    chained = summary([each / len(copies) for each in replay_us([chain.replay], 8, clock)])
    return {"us": single, "chained_us": chained["median"], "copies": len(copies)}


def kept_by(runner: Any, call: Call) -> Any:
    return runner.run(call)["keep_indices"]


def overlap(found: Any, expected: Any) -> float:
    """Share of the expected patches that are among the found ones."""
    pairs = [(set(map(int, a)) - {-1}, set(map(int, b)) - {-1}) for a, b in zip(found, expected, strict=True)]
    return sum(len(a & b) for a, b in pairs) / max(1, sum(len(b) for _, b in pairs))


def torch_inputs(workload: Workload, call: Call, device: str) -> dict[str, Any]:
    """The call's inputs as tensors."""
    given = encoder_inputs(workload)
    return {name: torch.from_numpy(np.ascontiguousarray(given[name])).to(device) for name in call.inputs}


def torch_run(workload: Workload, call: Call, inputs: dict[str, Any]) -> Callable[[], Any]:
    """The method in PyTorch, in the style of released code."""
    style = torch_style.STYLES[workload.method]
    options = {"grid": workload.grid, "rank": call.parameter("rank")}
    options["clusters"] = call.parameter("cluster_count") if call.parameter("clusters") else 0
    return lambda: style(inputs, workload.keep, **options)


def reference_run(workload: Workload, inputs: dict[str, Any]) -> Callable[[], Any]:
    """The float64 reference on tensors."""
    from vtexport.pruning import select

    read = dict(inputs)
    features, scores = read.pop("features"), read.pop("scores", None)
    return lambda: select(
        workload.method, features, scores, keep=workload.keep, grid=workload.grid, **read, **workload.options
    )


def run_times(
    runner: Any, ceilings: dict[str, Any], *, clock: Any, cache_bytes: int, quick: bool, seconds: float, device: str
) -> Iterator[dict[str, Any]]:
    """One row a workload. The PyTorch side is left out ("torch": null) after `seconds`, and of larger workloads of a
    method that took longer than TORCH_TOO_SLOW.
    """
    begin = time.perf_counter()
    slow: set[str] = set()
    count = QUICK_SAMPLES if quick else SAMPLES
    for workload in encoder_workloads(quick):
        call = encoder_workload_call(workload)
        if call is None:
            continue
        row = _row(workload, call, ceilings)
        try:
            row |= time_call(runner, call, count=count, clock=clock, cache_bytes=cache_bytes)
            if time.perf_counter() - begin < seconds and workload.name not in slow:
                row |= _beside(runner, workload, call, clock, device)
                if row["torch"] and row["torch"]["us"]["median"] > TORCH_TOO_SLOW:
                    slow.add(workload.name)
            _ratios(row)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        yield row
    for workload, call in step_workloads():
        row = _row(workload, call, ceilings)
        try:
            row |= time_call(runner, call, count=count, clock=clock, cache_bytes=cache_bytes)
            _ratios(row)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        yield row


def _row(workload: Workload, call: Call, ceilings: dict[str, Any]) -> dict[str, Any]:
    floor = floor_of(call)
    return {
        "op": workload.name,
        "op_type": call.op_type,
        "tokens": workload.tokens,
        "keep": workload.keep,
        "batch": workload.batch,
        "dtype": call.dtype,
        "parameters": {name: str(value) for name, value in workload.options.items()},
        "floor": vars(floor),
        "floor_us": floor.microseconds(ceilings),
        "torch": None,
    }


def _beside(runner: Any, workload: Workload, call: Call, clock: Any, device: str) -> dict[str, Any]:
    """The PyTorch side; what goes wrong there, such as a want of memory, takes nothing from the kernels' times."""
    try:
        return {"torch": _torch_side(runner, workload, call, clock, device)}
    except Exception as error:
        return {"torch_error": f"{type(error).__name__}: {error}"}


def _torch_side(runner: Any, workload: Workload, call: Call, clock: Any, device: str) -> dict[str, Any]:
    inputs = torch_inputs(workload, call, device)
    kernels = kept_by(runner, call)
    torch.manual_seed(0)
    samples, kept = call_us(torch_run(workload, call, inputs), clock, most=TORCH_SAMPLES, seconds=TORCH_SECONDS)
    found = {
        "about": torch_style.ABOUT[workload.method],
        "us": summary(samples),
        "overlap": overlap(kept, kernels),
    }
    if (workload.tokens, workload.keep, workload.batch) == REFERENCE_AT:
        samples, selection = call_us(reference_run(workload, inputs), clock, most=2, seconds=4.0)
        found["reference_us"] = summary(samples)
        found["reference_overlap"] = overlap(selection.keep_indices, kernels)
    return found


def _ratios(row: dict[str, Any]) -> None:
    row["over_floor"] = row["us"]["median"] / row["floor_us"] if row["floor_us"] else None
    if row["torch"]:
        row["times_quicker_than_torch"] = row["torch"]["us"]["median"] / row["us"]["median"]
