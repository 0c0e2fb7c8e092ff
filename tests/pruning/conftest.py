"""Shared by the pruning tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning_cases import run_stock

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="session")
def golden_images() -> tuple[np.ndarray, np.ndarray]:
    """The five golden images: features [5, 577, 1024] float16 and CLS scores [5, 576] float32."""
    files = [np.load(GOLDEN / f"features_seed{seed}.npz") for seed in (1, 2, 3)]
    hidden = [file["hidden"] for file in files]
    attention = [file["cls_attention"] for file in files]

    def mix(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (0.5 * (p.astype(np.float32) + q.astype(np.float32))).astype(np.float16)

    hidden += [mix(hidden[0], hidden[1]), mix(hidden[1], hidden[2][:, ::-1])]
    half = np.float32(0.5)
    attention += [half * (attention[0] + attention[1]), half * (attention[1] + attention[2])]
    return np.stack(hidden), np.stack([each.sum(0) for each in attention])


@pytest.fixture(scope="session")
def stock() -> Callable[[Any], Callable[..., dict[str, np.ndarray]]]:
    return run_stock
