"""Samples of tensors, as a proof stores them and as a replay takes them of its own: both sides by the same functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROW_BYTES = 320_000  # of the stored rows of one tensor, all cases together
MOST_LOGITS = 4096  # larger vocabularies are stored by their largest logits and by the means of groups
TOP_LOGITS, LOGIT_GROUPS = 256, 2048
MEAN = "mean"


@dataclass(frozen=True)
class Deviation:
    """Difference between two tensors, in units of the expected one's root mean square."""

    rms: float
    largest: float


def stride_of(rows: int, width: int, cases: int) -> int:
    """The stride at which rows [rows, width] float32 of so many cases fit into `ROW_BYTES`: odd, so that a grid of patches with an even
    side is not met in the same columns again and again."""
    stride = 1
    while stride < rows and -(-rows // stride) * width * 4 * cases > ROW_BYTES:
        stride += 2
    return stride


def sample_rows(values: np.ndarray, stride: int) -> dict[str, np.ndarray]:
    """Every `stride`-th row of [N, ...] as float32 [n, W], and the mean [W] over all rows, to which each adds."""
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    return {"rows": flat[::stride], MEAN: flat.mean(axis=0, dtype=np.float64).astype(np.float32)}


def sample_logits(logits: np.ndarray, top: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All of [V] where they are few; else those at the ids `top` (the largest when None), and the means of groups.

    Every logit adds to the mean of its group of neighbours, so none is left out.
    """
    values = np.asarray(logits, np.float32)
    if len(values) <= MOST_LOGITS:
        return {"all": values}
    if top is None:
        top = np.argsort(-values, kind="stable")[:TOP_LOGITS].astype(np.int32)
    edges = np.linspace(0, len(values), LOGIT_GROUPS + 1).astype(int)
    sums = np.add.reduceat(values.astype(np.float64), edges[:-1])
    return {"top": top, "top_values": values[top], "groups": (sums / np.diff(edges)).astype(np.float32)}


def deviation(found: np.ndarray, expected: np.ndarray, scale: float | None = None) -> Deviation:
    """Deviation of `found` from `expected`, of one shape; `scale` replaces the root mean square of `expected`.

    Values that are not finite deviate infinitely.
    """
    wide = expected.astype(np.float64)
    difference = found.astype(np.float64) - wide
    if not np.isfinite(difference).all():
        return Deviation(float("inf"), float("inf"))
    unit = root_mean_square(wide) if scale is None else scale
    unit = unit or np.finfo(np.float64).tiny
    return Deviation(root_mean_square(difference) / unit, float(np.abs(difference).max(initial=0.0)) / unit)


def root_mean_square(values: np.ndarray) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def rows_deviation(found: np.ndarray, stored: dict[str, np.ndarray], stride: int) -> Deviation:
    """Deviation of a tensor [N, ...] from its stored rows and mean, the larger of both, in units of the rows'."""
    own = sample_rows(found, stride)
    if own["rows"].shape != stored["rows"].shape:
        return Deviation(float("inf"), float("inf"))
    unit = root_mean_square(stored["rows"])
    parts = [deviation(own[name], stored[name], unit) for name in ("rows", MEAN)]
    return Deviation(max(each.rms for each in parts), max(each.largest for each in parts))


def logits_deviation(found: np.ndarray, stored: dict[str, np.ndarray]) -> Deviation:
    """The same of logits [V] and what `sample_logits` stored."""
    if "all" in stored:
        same = found.shape == stored["all"].shape
        return deviation(found, stored["all"]) if same else Deviation(float("inf"), float("inf"))
    if len(found) <= stored["top"].max(initial=0):
        return Deviation(float("inf"), float("inf"))
    own = sample_logits(found, stored["top"])
    parts = [deviation(own[name], stored[name]) for name in ("top_values", "groups")]
    return Deviation(max(each.rms for each in parts), max(each.largest for each in parts))


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the expected indices that were found, places not counted."""
    return len(set(found.tolist()) & set(expected.tolist())) / max(1, len(set(expected.tolist())))
