"""Method "none": all patches enter the language model. The baseline that every comparison needs."""

from __future__ import annotations

from vtexport.errors import UsageError
from vtexport.pruning.method import Method
from vtexport.pruning.ops.keep_all import KeepAll, keep_all
from vtexport.pruning.options import Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import ModelShape


@register
class NoPruning(Method):
    """No pruning, in the shape of a method."""

    name = "none"
    acts = "between the vision tower and the projector"
    budget = "all patches; leave it out or give the number of patches"
    op = KeepAll

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        tokens = model.tokens
        if keep is not None and keep != tokens:
            raise UsageError(f"keep={keep!r} is not allowed for none, which keeps all {tokens} patches; leave keep out")
        return keep_all(model)
