"""Runs every op on small inputs, with no other CUDA program around: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python3 -m gpu_check.tiny_driver LIBRARY

Memory and stream come from the driver's own library, so no kernel but ours runs, and PyTorch need not be there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpu_check import array_api

array_api.install()  # before what imports the references

from native_ops.calls import Runner  # noqa: E402
from native_ops.compare import check  # noqa: E402

from gpu_check.parity import small_cases  # noqa: E402
from vtexport.backends.trt.cuda_driver import Device  # noqa: E402
from vtexport.plugins.native import Library  # noqa: E402


class DriverRunner(Runner):
    """Buffers are (address, bytes); they are given back when the process ends."""

    def __init__(self, library: Path) -> None:
        self.device = Device()  # first, so that the library finds a context
        super().__init__(Library(library, "vtx_cuda_"))

    @property
    def stream(self) -> int:  # type: ignore[override]
        return self.device.stream

    def allocate(self, count: int) -> tuple[int, int]:
        return self.device.allocate(count), count

    def address(self, buffer: tuple[int, int]) -> int:
        return buffer[0]

    def copy_in(self, buffer: tuple[int, int], values: np.ndarray) -> None:
        self.device.upload(buffer[0], np.ascontiguousarray(values))

    def copy_out(self, buffer: tuple[int, int], start: int = 0) -> np.ndarray:
        self.device.synchronize()
        found = np.empty(buffer[1] - start, np.uint8)
        self.device.download(found, buffer[0] + start)
        return found


def main(arguments: list[str]) -> int:
    runner: Any = DriverRunner(Path(arguments[0]))
    wrong: list[str] = []
    count = 0
    for case in small_cases():
        wrong += check(runner, case)
        count += 1
    print(f"{count} cases, {len(wrong)} wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
