"""PyramidDrop (arXiv 2410.17247): the language model's depth in four parts, each with fewer visual tokens.

At the entry of layers 8, 16 and 24 (of 32) the tokens are ranked by the attention that the last instruction token pays
them in that layer, its query and keys projected anew from its own input: mean over heads after softmax. The released
settings keep 1/2, 1/4 and 1/8 of the n tokens that came in, ratio^i n in general, and number positions through again.
Here the ratio follows from the budget, which is the mean over the decoder's layers.
"""

from __future__ import annotations

import bisect

from vtexport.pruning.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.method import Method
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.keep_all import keep_all
from vtexport.pruning.options import Option, Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import ModelShape, before_layer


@register
class PyramidDrop(Method):
    """Three ops at a quarter, half and three quarters of the depth, by the attention of the layer behind each."""

    name = "pyramiddrop"
    title = "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction"
    arxiv = "2410.17247"
    acts = "inside the language model, before three layers"
    budget = "visual tokens per image and layer, the mean over the decoder's layers"
    options = (
        Option(
            "positions",
            kind=str,
            default="compacted",
            choices=("compacted", "original"),
            about="position ids behind a step: numbered through again (code) or kept",
        ),
    )

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        tokens, layers = model.tokens, model.layers
        at = [scaled_layer(layer, layers) for layer in (8, 16, 24)]
        check_layers(self.name, at, layers)

        def counts(first: int) -> list[int]:
            return [max(1, first**power // tokens ** (power - 1)) for power in (1, 2, 3)]

        def mean(first: int) -> float:
            return mean_tokens(tokens, list(zip(at, counts(first), strict=True)), layers)

        def first(budget: int) -> int:
            # The mean rises with the first count.
            above = 1 + bisect.bisect_left(range(1, tokens + 1), float(budget), key=mean)
            return min({max(1, above - 1), min(tokens, above)}, key=lambda each: (abs(mean(each) - budget), each))

        keep = check_budget(self.name, keep, lambda budget: mean(first(budget)), tokens)
        kept = counts(first(keep))
        steps = (
            PlacedOp(before_layer(layer), AttentionTopK(), before, after, options["positions"], source="behind")
            for layer, before, after in zip(at, [tokens, *kept], kept, strict=False)
        )
        return Schedule(keep, (keep_all(model), *steps), options.resolved(), has_cls=model.has_cls)
