"""DivPrune (arXiv 2503.02175): keep the tokens whose smallest distance to each other is as large as greed can make it.

Neither attention nor text decides. The authors' code compares the projector's results.
"""

from __future__ import annotations

from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.divprune import DivPrune
from vtexport.pruning.options import Option, Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import ModelShape, after_space


@register
class DivPruneMethod(Method):
    """One op, at the authors' place or before the projector."""

    name = "divprune"
    title = "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    arxiv = "2503.02175"
    acts = "behind the projector, or before it with space=vision"
    budget = "visual tokens per image, all of them patches"
    op = DivPrune
    options = (
        Option(
            "space",
            kind=str,
            default="projected",
            choices=("projected", "vision"),
            about="whose cosines are compared: the projector's results (code) or the vision tower's features",
        ),
    )

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        return PlacedOp(after_space(options["space"]), DivPrune(), model.tokens, keep)
