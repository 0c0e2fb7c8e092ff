"""Method "random": patches drawn once by a seed. The baseline that a pruning method has to beat."""

from __future__ import annotations

from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.fixed_patches import RandomPatches
from vtexport.pruning.options import Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_TOWER, ModelShape


@register
class Random(Method):
    """N patches by a seed; a graph holds them as a constant."""

    name = "random"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image, all patches"
    op = RandomPatches
    options = settings_of(RandomPatches)

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        return PlacedOp(AFTER_TOWER, RandomPatches.of(options), model.tokens, keep)
