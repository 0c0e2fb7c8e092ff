"""Method "uniform": patches at an even stride in raster order. The cheapest baseline there is."""

from __future__ import annotations

from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.fixed_patches import UniformPatches
from vtexport.pruning.options import Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_TOWER, ModelShape


@register
class Uniform(Method):
    """N patches at an even stride."""

    name = "uniform"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image, all patches"
    op = UniformPatches

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        return PlacedOp(AFTER_TOWER, UniformPatches(), model.tokens, keep)
