"""The kernels on a GPU: memory by PyTorch, on its current stream, called directly or replayed from a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from native_ops.calls import GUARD, Call, Prepared, Runner, encoder_call

from vtexport.plugins.native import Library


class GpuRunner(Runner):
    """Buffers are uint8 tensors; PyTorch aligns them to 512 bytes."""

    def __init__(self, library: Path) -> None:
        super().__init__(Library(library, "vtx_cuda_"))

    @property
    def stream(self) -> int:  # type: ignore[override]
        return int(torch.cuda.current_stream().cuda_stream)

    def allocate(self, count: int) -> torch.Tensor:
        return torch.empty(max(count, 1), dtype=torch.uint8, device="cuda")[:count]

    def address(self, buffer: torch.Tensor) -> int:
        return int(buffer.data_ptr())

    def copy_in(self, buffer: torch.Tensor, values: np.ndarray) -> None:
        buffer[: values.size].copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def copy_out(self, buffer: torch.Tensor, start: int = 0) -> np.ndarray:
        found: np.ndarray = buffer[start:].cpu().numpy()  # waits for the current stream
        return found

    def fill(self, buffer: torch.Tensor, count: int, byte: int) -> None:
        buffer.fill_(byte)

    def poison(self, prepared: Prepared, byte: int = 0xA5) -> None:
        """Fills the outputs again, without their memory being had anew, which a graph holds by address."""
        for name in prepared.call.outputs:
            prepared.buffers[name].fill_(byte)

    def captured(self, prepared: Sequence[Prepared], repeats: int = 1) -> torch.cuda.CUDAGraph:
        """A graph of the calls, one behind the other, `repeats` times.

        Each is launched once before, on the stream that is captured: kernels are loaded at their first launch, which is
        not allowed inside a capture.
        """
        return captured(lambda: [self.launch(each) for _ in range(repeats) for each in prepared])


@functools.lru_cache(maxsize=1)
def _capture_stream() -> Any:
    return torch.cuda.Stream()


def captured(enqueue: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `enqueue` puts on the current stream, which is run once before.

    By `capture_begin` and `capture_end`: the context manager `torch.cuda.graph` empties caches at every capture, and
    here there are thousands. All on one stream, since PyTorch keeps freed memory for the stream that it was had on.
    """
    stream = _capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        enqueue()
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            enqueue()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def selection_by(runner: GpuRunner, grid: tuple[int, int]) -> Any:
    """What `model.run_scene` selects by: PruneSID's kernels, on the tower's own tensors, in a CUDA graph."""

    def select(features: torch.Tensor, scores: torch.Tensor, keep: int) -> tuple[Any, torch.Tensor]:
        given = {"features": features.float().cpu().numpy(), "scores": scores.cpu().numpy()}
        whole = encoder_call("prunesid", given, keep=keep, grid=grid, dtype="float16")
        outputs = {name: whole.outputs[name] for name in ("kept_features", "keep_indices")}
        prepared = runner.prepare(Call(whole.op_type, whole.sizes, whole.parameters, whole.inputs, outputs), poison=0)
        prepared.buffers |= {"features": features, "scores": scores}
        prepared.addresses |= {"features": features.data_ptr(), "scores": scores.data_ptr()}
        graph = runner.captured([prepared])
        graph.replay()
        shape, _ = outputs["kept_features"]
        kept = prepared.buffers["kept_features"][:-GUARD].view(torch.float16).view(shape)

        def replay() -> None:
            assert prepared  # whose workspace and other outputs the graph writes: they live as long as it does
            graph.replay()

        return replay, kept

    return select
