"""FastV (arXiv 2403.06764): after an early layer, the visual tokens that the last token hardly looks at go.

At the entry of layer K the attention of layer K - 1 is read: mean over heads, row of the last token, columns of the n
visual tokens. The round(n (1 - R)) largest stay, with their position ids. Here R follows from the budget, which is the
mean over the decoder's layers: K layers see all n tokens, the others what is left.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.llm.step import LLMStep
from vtexport.pruning.method import LLMMethod, Parameters, Schedule, option
from vtexport.pruning.registry import get_method, register


@dataclass(frozen=True)
class FastVParameters(Parameters):
    """K; the paper's default is 2 of 32 layers, the released demo's 3."""

    layer: int | None = option(
        None,
        kind=int,
        minimum=1,
        about="decoder layer K before which the step acts; default 2 of 32, scaled, at least 1",
    )


@register
class FastV(LLMMethod):
    """One step before layer K, by the last token's attention in layer K - 1."""

    name = "fastv"
    title = "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for VLLMs"
    arxiv = "2403.06764"
    acts = "inside the language model, before one early layer"
    budget = "visual tokens per image and layer, the mean over the decoder's layers"
    parameters = FastVParameters

    def schedule(
        self, parameters: FastVParameters, *, grid: tuple[int, int], keep: int | None, layers: int
    ) -> Schedule:
        tokens = grid[0] * grid[1]
        layer = scaled_layer(2, layers) if parameters.layer is None else parameters.layer
        check_layers(self.name, [layer], layers)

        def left(budget: int) -> int:
            return min(tokens, max(1, round((layers * budget - layer * tokens) / (layers - layer))))

        keep = check_budget(
            self.name, keep, lambda budget: mean_tokens(tokens, [(layer, left(budget))], layers), tokens
        )
        step = LLMStep(layer=layer, tokens=tokens, keep=left(keep), op=AttentionTopK())
        entering, everything = get_method("none").resolve(Parameters(), grid=grid, keep=None)
        resolved = dataclasses.replace(parameters, layer=layer)
        return Schedule(get_method("none"), everything, entering, keep, (step,), self.name, resolved)
