"""Selections that look at no image: the kept patches are a constant of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtexport.pruning.method import Array, Selection, Sizes

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter


def select_fixed(features: Array, patches: Sequence[int]) -> Selection:
    """The rows `patches` of every image of `features` [B, T, D]."""
    from array_api_compat import array_namespace

    from vtexport.pruning.arrays import gather_rows, integers

    xp = array_namespace(features)
    rows = integers(xp, [list(patches)] * features.shape[0], features)
    return Selection(rows, gather_rows(xp, features, rows), {})


def emit_fixed(e: Emitter, sizes: Sizes, patches: Sequence[int]) -> dict[str, str]:
    """The same as an ONNX function body."""
    import numpy as np

    rows = np.asarray(patches, np.int64)
    return {
        "kept_features": e.Gather("features", rows, axis=1),
        "keep_indices": e.constant(np.broadcast_to(rows, (sizes.batch, sizes.keep))),
    }
