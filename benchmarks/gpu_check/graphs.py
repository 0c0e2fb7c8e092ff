"""Whether a CUDA graph of an op gives what the direct call gives, also for inputs that come after the capture."""

from __future__ import annotations

import dataclasses

import numpy as np
from native_ops.calls import Call

from gpu_check.device import GpuRunner


def check_graph(runner: GpuRunner, call: Call) -> list[str]:
    """What is wrong; two inputs through one graph, outputs poisoned before each replay."""
    other = dataclasses.replace(call, inputs={name: _other(name, each) for name, each in call.inputs.items()})
    direct = [runner.run(each) for each in (call, other)]
    prepared = runner.prepare(call)
    graph = runner.captured([prepared])
    wrong = []
    for number, (each, expected) in enumerate(zip((call, other), direct, strict=True)):
        for name, values in each.inputs.items():
            runner.copy_in(prepared.buffers[name], np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        runner.poison(prepared)
        graph.replay()
        found = runner.results(dataclasses.replace(prepared, call=each))
        wrong += [
            f"{call.op_type}: {name} of a CUDA graph differs from the direct call's, input {number + 1}"
            for name in found
            if found[name].tobytes() != expected[name].tobytes()
        ]
    return wrong


def _other(name: str, values: np.ndarray) -> np.ndarray:
    """Another input of the same shape: tokens in reverse order, the image somewhere else in the prompt."""
    if name == "visual_start":
        return np.zeros_like(values)
    return np.ascontiguousarray(np.flip(values, axis=0 if values.ndim == 1 else 1))
