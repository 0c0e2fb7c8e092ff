"""VtxAveragePooling: adaptive average pooling of the grid of patches to a coarser grid.

The coarse grid follows Nüwa's comparison (arXiv 2602.02951): with a = rows / columns it has round(sqrt(N / a)) columns
and round(a columns) rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.op import Op
from vtexport.pruning.types import Array, Selection, Sizes

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

Window = tuple[int, int]  # first and behind the last


@dataclass(frozen=True)
class AveragePooling(Op):
    """Each kept token is the mean of a window of patches; `keep_indices` names the patch in the window's middle.

    Windows are those of adaptive average pooling: row i of n covers the rows from floor(i R / n) up to
    ceil((i + 1) R / n), so that neighbouring windows overlap where n does not divide R.
    """

    op_type = "VtxAveragePooling"
    merges = True
    needs_grid = True
    has_native = False

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace, device

        from vtexport.pruning.arrays import integers

        features = inputs["features"]
        xp, (weights, middles, merged) = array_namespace(features), _pooling(sizes)
        averaging = xp.asarray(weights.tolist(), dtype=xp.float64, device=device(features))
        pooled = features if sizes.keep == sizes.tokens else averaging @ xp.astype(features, xp.float64)
        batch = features.shape[0]
        flags = xp.asarray([merged.tolist()] * batch, dtype=xp.bool, device=device(features))
        indices = integers(xp, [middles] * batch, features)
        return Selection(indices, xp.astype(pooled, features.dtype), {}, flags)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        import numpy as np

        weights, middles, merged = _pooling(sizes)
        shape = sizes.batch, sizes.keep
        features = inputs["features"]
        pooled = g.CastLike(g.MatMul(weights, g.as_float(features)), features)
        return {
            "kept_features": features if sizes.keep == sizes.tokens else pooled,
            "keep_indices": g.constant(np.broadcast_to(np.asarray(middles, np.int64), shape)),
            "merged": g.constant(np.broadcast_to(merged, shape)),
        }


def coarse_grid(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """Rows and columns of the coarse grid; one token and all of them are possible on any grid."""
    if keep in (1, grid[0] * grid[1]):
        return (1, 1) if keep == 1 else grid
    ratio = grid[0] / grid[1]
    columns = min(grid[1], max(1, round(math.sqrt(keep / ratio))))
    return min(grid[0], max(1, round(ratio * columns))), columns


def _windows(fine: int, coarse: int) -> list[Window]:
    return [(place * fine // coarse, -(-(place + 1) * fine // coarse)) for place in range(coarse)]


def _pooling(sizes: Sizes) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Weights [N, T], the patch in the middle of each window, and which windows hold more than one patch [N]."""
    import numpy as np

    rows, columns = sizes.grid
    coarse = coarse_grid(sizes.grid, sizes.keep)
    weights = np.zeros((sizes.keep, rows, columns))
    middles = []
    windows = [(down, across) for down in _windows(rows, coarse[0]) for across in _windows(columns, coarse[1])]
    for number, ((top, bottom), (left, right)) in enumerate(windows):
        weights[number, top:bottom, left:right] = 1 / ((bottom - top) * (right - left))
        middles.append((top + bottom - 1) // 2 * columns + (left + right - 1) // 2)
    return weights.reshape(sizes.keep, -1), middles, (weights > 0).sum((1, 2)) > 1
