"""A share of the cores for each of several test processes, for what counts cores when it is imported.

PyTorch, OpenBLAS and ONNX Runtime start a thread for every core that a process may use, and these threads wait by
spinning. Two test processes that each take two cores for theirs keep one another from running: with other work on the
machine a file of tests that takes 80 seconds on one core alone was seen to take twenty minutes.
"""

from __future__ import annotations

import os


def take_share() -> None:
    """Leaves this pytest-xdist worker, and the processes it starts, its share of the cores; elsewhere does nothing.

    Import it before numpy and torch.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker.removeprefix("gw")) :: workers] if worker.startswith("gw") else []
    if share:
        os.sched_setaffinity(0, share)


take_share()
