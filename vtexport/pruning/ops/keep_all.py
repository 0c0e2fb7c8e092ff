"""VtxKeepAll: every patch stays. What the unpruned model does, in the shape of a pruning op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.op import Op
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_TOWER, Array, ModelShape, Selection, Sizes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


@dataclass(frozen=True)
class KeepAll(Op):
    """All T patches in raster order."""

    op_type = "VtxKeepAll"
    has_native = False

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import integers

        features = inputs["features"]
        every = integers(array_namespace(features), [list(range(sizes.tokens))] * features.shape[0], features)
        return Selection(every, features)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        import numpy as np

        every = np.broadcast_to(np.arange(sizes.tokens, dtype=np.int64), (sizes.batch, sizes.tokens))
        return {"kept_features": inputs["features"], "keep_indices": g.constant(every)}


def keep_all(model: ModelShape) -> PlacedOp:
    """The op of methods that let all patches into the language model."""
    return PlacedOp(AFTER_TOWER, KeepAll(), model.tokens, model.tokens)
