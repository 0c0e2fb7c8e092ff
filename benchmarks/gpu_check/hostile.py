"""Inputs that no tower gives: NaN, infinities, zeros, rows all alike. Any of them has to give a valid selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from native_ops.calls import Call
from native_ops.compare import Case

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zero": np.zeros_like,
    "equal": lambda x: np.full_like(x, 0.3),
    "NaN": lambda x: np.full_like(x, np.nan),
    "some NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 7 == 0, np.nan, x),
    "some infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 5 == 0, np.inf, x),
    "huge": lambda x: x * np.float32(1e30),
    "tiny": lambda x: x * np.float32(1e-38),
    "rank 1": lambda x: x[..., :1] * np.ones_like(x),
}


def hostile_cases(calls: list[Call]) -> Iterator[Case]:
    """Every kind for every call, of which only validity is asked."""
    for kind, change in KINDS.items():
        for call in calls:
            with np.errstate(over="ignore"):
                inputs = {
                    name: np.ascontiguousarray(change(each), np.float32) if each.dtype == np.float32 else each
                    for name, each in call.inputs.items()
                }
            # Which rows are merged follows from the tokens chosen, so of these no row's bits are looked at.
            merged = np.ones(call.sizes.keep, bool) if call.op_type == "VtxClusterMerge" else None
            name = f"{call.op_type} with {kind} inputs"
            yield Case(name, dataclasses.replace(call, inputs=inputs), {}, np.zeros(1, bool), merged=merged)
