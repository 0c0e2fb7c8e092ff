"""CDPruner (arXiv 2506.10967): keep a set of tokens that is diverse, and relevant to the question."""

from __future__ import annotations

import dataclasses

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.cdpruner import MOST_THETA, CDPruner
from vtexport.pruning.options import Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import AFTER_CONNECTOR, ModelShape


@register
class CDPrunerMethod(Method):
    """One op behind the projector."""

    name = "cdpruner"
    title = "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs"
    arxiv = "2506.10967"
    acts = "behind the projector"
    budget = "visual tokens per image, all of them patches"
    op = CDPruner
    options = settings_of(CDPruner)

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        theta, relevance = options["theta"], options["relevance"]
        if theta > MOST_THETA:
            raise UsageError(f"theta={theta:g} is not allowed; give a number from 0 to {MOST_THETA}")
        op = CDPruner.of(options, negate=options.set_or("negate", relevance == "clip"))
        return PlacedOp(AFTER_CONNECTOR, op, model.tokens, keep)

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        schedule = super().plan(options, model, keep)
        if options["relevance"] != "llm":
            return schedule
        remark = (
            "cdpruner takes relevance from the language model's embeddings of the question, as OpenVINO GenAI "
            "does; its authors take it from CLIP's text tower, which the checkpoint does not hold"
        )
        return dataclasses.replace(schedule, remarks=(remark,))
