"""Method "pool": adaptive average pooling of the grid of patches to a coarser grid.

The baseline that beats FastV, SparseVLM and VisionZip on RefCOCO in Nüwa's comparison (arXiv 2602.02951).
"""

from __future__ import annotations

import math

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.average_pooling import AveragePooling, coarse_grid
from vtexport.pruning.options import Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_TOWER, ModelShape


@register
class Pool(Method):
    """Windows of patches, each averaged to one token."""

    name = "pool"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image; rows times columns of the coarse grid, so not every number can be given"
    op = AveragePooling

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        grid = model.grid
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        if math.prod(coarse_grid(grid, keep)) != keep:
            possible = _possible(grid)
            nearest = [max(each for each in possible if each < keep), min(each for each in possible if each > keep)]
            raise UsageError(
                f"keep={keep} is not allowed for pool: a grid of {grid[0]} x {grid[1]} patches cannot be pooled to "
                f"{keep} tokens of its shape; give {nearest[0]} or {nearest[1]}"
            )
        return PlacedOp(AFTER_TOWER, AveragePooling(), model.tokens, keep)


def _possible(grid: tuple[int, int]) -> list[int]:
    """Every budget that the rule gives exactly."""
    return [keep for keep in range(1, grid[0] * grid[1] + 1) if math.prod(coarse_grid(grid, keep)) == keep]
