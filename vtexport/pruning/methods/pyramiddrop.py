"""PyramidDrop (arXiv 2410.17247): the language model's depth in four parts, each with fewer visual tokens.

At the entry of layers 8, 16 and 24 (of 32) the tokens are ranked by the attention that the last instruction token pays
them in that layer, its query and keys projected anew from its own input: mean over heads after softmax. The released
settings keep 1/2, 1/4 and 1/8 of the n tokens that came in, ratio^i n in general, and number positions through again.
Here the ratio follows from the budget, which is the mean over the decoder's layers.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.llm.step import LLMStep
from vtexport.pruning.method import LLMMethod, Parameters, Schedule, option
from vtexport.pruning.registry import get_method, register


@dataclass(frozen=True)
class PyramidDropParameters(Parameters):
    """Positions of the tokens that stay."""

    positions: str = option(
        "compacted",
        kind=str,
        choices=("compacted", "original"),
        about="position ids behind a step: numbered through again (code) or kept",
    )


@register
class PyramidDrop(LLMMethod):
    """Three steps at a quarter, half and three quarters of the depth, by the attention of the layer behind each."""

    name = "pyramiddrop"
    title = "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction"
    arxiv = "2410.17247"
    acts = "inside the language model, before three layers"
    budget = "visual tokens per image and layer, the mean over the decoder's layers"
    parameters = PyramidDropParameters

    def schedule(
        self, parameters: PyramidDropParameters, *, grid: tuple[int, int], keep: int | None, layers: int
    ) -> Schedule:
        tokens = grid[0] * grid[1]
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
        steps = tuple(
            LLMStep(
                layer=layer,
                tokens=before,
                keep=after,
                op=AttentionTopK(),
                source="behind",
                positions=parameters.positions,
            )
            for layer, before, after in zip(at, [tokens, *kept], kept, strict=False)
        )
        entering, everything = get_method("none").resolve(Parameters(), grid=grid, keep=None)
        return Schedule(get_method("none"), everything, entering, keep, steps, self.name, parameters)
