"""Speed of the machine beside a measurement: matrix products and memory copies by NumPy.

A virtual or hot machine changes its speed; figures of two times compare only with what it could do at each. It runs in
a process of its own (`python -m vtexport.measure.calibration THREADS`), because the number of threads of NumPy's matrix
products is fixed when NumPy is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from vtexport.bundle.unfinished import written_by
from vtexport.errors import VtexportError, quoted
from vtexport.measure.record import Calibration

_SIDE = 1024  # of the square matrices: 2.1 GFLOP a product, 12 MiB in all
_COPIED = 64 * 2**20  # bytes, more than the caches of the devices this is for hold
_SECONDS = 0.5  # of each of the two, at least
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def calibrate(when: Literal["before", "after"], threads: int) -> Calibration:
    """Medians over half a second each: GFLOP/s of float32 products of 1024 x 1024, GB/s of copies of 64 MiB.

    Bytes copied count twice, read and written.

    Raises:
        VtexportError: the process failed.
    """
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", "vtexport.measure.calibration", str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment) as process, written_by(process):
        output, said = process.communicate()
    if process.returncode != 0:
        reason = quoted(said.decode(errors="replace").strip() or f"exit code {process.returncode}")
        raise VtexportError(f"the machine's speed cannot be measured ({reason}); run again")
    gemm, copy = json.loads(output)
    return Calibration(when=when, threads=threads, gemm_gflops=gemm, copy_gb_per_s=copy)


def _measure(threads: int) -> tuple[float, float]:
    import numpy as np

    one = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    out = np.empty_like(one)

    def product() -> None:
        np.matmul(one, one, out=out)

    source = np.ones(_COPIED // 8, np.float64)
    target = np.empty_like(source)
    pieces = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def copy() -> None:
        # np.copyto lets other threads run while it copies
        workers = [threading.Thread(target=np.copyto, args=(to, of)) for of, to in pieces[1:]]
        for worker in workers:
            worker.start()
        np.copyto(pieces[0][1], pieces[0][0])
        for worker in workers:
            worker.join()

    def median_seconds(step: Callable[[], None]) -> float:
        step()
        taken: list[float] = []
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end or len(taken) < 3:
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
        return float(np.median(taken))

    return 2 * _SIDE**3 / median_seconds(product) / 1e9, 2 * source.nbytes / median_seconds(copy) / 1e9


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
