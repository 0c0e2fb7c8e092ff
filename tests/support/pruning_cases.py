"""Parts of the pruning tests: stock ONNX Runtime, and random features with a spectrum that decides the groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vtexport.pruning import get_method


def run_stock(model: Any) -> Callable[..., dict[str, np.ndarray]]:
    """A session on the CPU provider with no custom library; call it with the inputs by name."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, session.run(None, inputs), strict=True))


def has_own_op(name: str) -> bool:
    """True where the method has an op of its own before the language model; the others prune inside it alone."""
    return get_method(name).op is not None


def structured(seed: int, rows: int, width: int, rank: int) -> np.ndarray:
    """[rows, width] float32 features whose sigmoid has `rank` well separated components, centred either way."""
    rng = np.random.default_rng(seed)

    def directions(size: int) -> np.ndarray:
        raw = rng.standard_normal((size, rank))
        return np.linalg.qr(raw - raw.mean(0))[0]

    strength = 1.15 ** -np.arange(rank)
    y = (directions(rows) * strength) @ directions(width).T
    y = 0.5 + 0.4 * y / np.abs(y).max()
    return np.log(y / (1 - y)).astype(np.float32)
