"""Estimates of what a proof takes, before a weight is loaded: memory from the manifest, time from this machine's speed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtexport.bundle.manifest import Manifest, Plan
from vtexport.dtypes import DTYPES

RUNS = 3  # prefills of a case: one that is recorded, and those under rounding, of which one decodes as well
TEXT_TOKENS = 64  # of a prompt, for the estimate
_FLOAT32 = 4  # bytes
_LIBRARIES = 800_000_000  # bytes that Python with PyTorch and transformers takes, about
_LOADING_SECONDS = 8.0  # importing them, about


@dataclass(frozen=True)
class Estimate:
    """About what a proof takes.

    Attributes:
        memory_bytes: Resident at the peak.
        seconds: From beginning to end.
    """

    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        return f"about {self.memory_bytes / 1e9:.1f} GB of memory and {minutes}"


def estimate(manifest: Manifest, plans: Sequence[Plan], cases: int, new_tokens: int) -> Estimate:
    """The estimate for proofs of `plans` on this machine, whose speed a small matrix product and a copy tell."""
    parameters = {
        part: sum(each.bytes // DTYPES[each.dtype].itemsize for each in stored)
        for part, stored in manifest.weights.items()
    }
    total = sum(parameters.values())
    decoder = parameters.get("decoder", 0) + parameters.get("lm_head", 0)
    seeing = parameters.get("vision_tower", 0)
    tokens = manifest.vision.largest.tokens
    products, bandwidth = _speed()
    seconds = _LOADING_SECONDS + total * _FLOAT32 * 2 / bandwidth
    for plan in plans:
        layers = plan.tokens_by_layer()
        rows = sum(layers) / len(layers) + TEXT_TOKENS
        prefill = 2.0 * (seeing * tokens + decoder * rows) / products
        decoding = 2 * new_tokens * decoder * _FLOAT32 / bandwidth
        seconds += cases * (RUNS * prefill + decoding)
    # Shards are read one after the other while the model is filled; a tenth for activations
    return Estimate(int(total * _FLOAT32 * 1.3) + _LIBRARIES, seconds)


def available_bytes() -> int | None:
    """Memory that processes can still take here, None where the system does not say."""
    info = Path("/proc/meminfo")
    try:
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_PHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _speed() -> tuple[float, float]:
    """Operations a second of a float32 matrix product, and bytes a second read from memory; the better of two tries."""
    matrix, block = np.ones((768, 768), np.float32), np.ones(16 * 2**20, np.float32)
    target = np.empty_like(block)
    best = [float("inf"), float("inf")]
    for _ in range(2):
        start = time.perf_counter()
        matrix @ matrix
        middle = time.perf_counter()
        np.copyto(target, block)
        end = time.perf_counter()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    return 2 * 768**3 / best[0], 2 * block.nbytes / best[1]
