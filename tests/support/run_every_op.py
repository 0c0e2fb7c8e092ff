"""Runs every op of a library of the CUDA API on small host arrays; for sanitizers, which want their own process."""

from __future__ import annotations

import sys
from pathlib import Path

from gpu_check.parity import small_cases
from native_ops.calls import HostRunner


def main() -> None:
    runner = HostRunner(Path(sys.argv[1]), "vtx_cuda_")
    for case in small_cases():
        runner.run(case.call)
    print("every op ran")


if __name__ == "__main__":
    main()
