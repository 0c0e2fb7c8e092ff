"""VtxUniformPatches and VtxRandomPatches: choices that look at no image, so the kept patches are a constant."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.types import Array, Selection, Sizes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


class FixedPatches(Op):
    """The same N patches of every image, in raster order."""

    has_native = False

    @abstractmethod
    def patches(self, sizes: Sizes) -> list[int]:
        """Raster indices of the N patches, ascending."""

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import gather_rows, integers

        features = inputs["features"]
        xp = array_namespace(features)
        rows = integers(xp, [self.patches(sizes)] * features.shape[0], features)
        return Selection(rows, gather_rows(xp, features, rows))

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        import numpy as np

        rows = np.asarray(self.patches(sizes), np.int64)
        return {
            "kept_features": g.Gather(inputs["features"], rows, axis=1),
            "keep_indices": g.constant(np.broadcast_to(rows, (sizes.batch, sizes.keep))),
        }


@dataclass(frozen=True)
class UniformPatches(FixedPatches):
    """The patch in the middle of each of N runs of equal length: i T / N + T / 2N, rounded down."""

    op_type = "VtxUniformPatches"

    def patches(self, sizes: Sizes) -> list[int]:
        return [(2 * place + 1) * sizes.tokens // (2 * sizes.keep) for place in range(sizes.keep)]


@dataclass(frozen=True, kw_only=True)
class RandomPatches(FixedPatches):
    """N patches drawn without replacement; 44 is the seed of Nüwa's comparisons (arXiv 2602.02951)."""

    op_type = "VtxRandomPatches"

    seed: int = setting(44, kind=int, minimum=0, about="which patches; the same for every image")

    def patches(self, sizes: Sizes) -> list[int]:
        import numpy as np

        # The legacy generator: NumPy promises that its stream stays the same in all versions.
        drawn = np.random.RandomState(self.seed % 2**32).permutation(sizes.tokens)[: sizes.keep]
        return sorted(drawn.tolist())
