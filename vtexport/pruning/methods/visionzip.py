"""VisionZip (arXiv 2412.04467): keep the tokens that CLS attends to, merge the others into a few contextual ones.

The defaults give the authors' 10, 20 and 30 contextual tokens of 64, 128 and 192.
"""

from __future__ import annotations

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.visionzip import VisionZip
from vtexport.pruning.options import Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import AFTER_TOWER, ModelShape


@register
class VisionZipMethod(Method):
    """One op behind the vision tower, which has to have a CLS token."""

    name = "visionzip"
    title = "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    arxiv = "2412.04467"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image: CLS, dominant and contextual (merged) ones"
    op = VisionZip
    options = settings_of(VisionZip)

    def takes_cls(self, options: Options, *, has_cls: bool = True) -> bool:
        return True

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        if not model.has_cls:
            raise UsageError("visionzip keeps the CLS token, and this vision tower has none; use another method")
        keep = check_keep(self.name, keep, smallest=2, largest=model.tokens + 1, unit="CLS included")
        contextual = options.set_or("contextual", max(1, (5 * keep + 16) // 32))
        if contextual > keep - 1:
            raise UsageError(
                f"contextual={contextual} is not allowed with keep={keep}; give a whole number from 1 to {keep - 1}"
            )
        return PlacedOp(AFTER_TOWER, VisionZip.of(options, contextual=contextual), model.tokens, keep)
