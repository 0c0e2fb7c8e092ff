"""FastV (arXiv 2403.06764): after an early layer, the visual tokens that the last token hardly looks at go.

At the entry of layer K the attention of layer K - 1 is read: mean over heads, row of the last token, columns of the n
visual tokens. The round(n (1 - R)) largest stay, with their position ids. Here R follows from the budget, which is the
mean over the decoder's layers: K layers see all n tokens, the others what is left.
"""

from __future__ import annotations

from vtexport.pruning.budget import check_budget, check_layers, mean_tokens, scaled_layer
from vtexport.pruning.method import Method
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.keep_all import keep_all
from vtexport.pruning.options import Option, Options
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import ModelShape, before_layer


@register
class FastV(Method):
    """One op before layer K, by the last token's attention in layer K - 1.

    The paper's default is 2 of 32 layers, the released demo's 3.
    """

    name = "fastv"
    title = "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for VLLMs"
    arxiv = "2403.06764"
    acts = "inside the language model, before one early layer"
    budget = "visual tokens per image and layer, the mean over the decoder's layers"
    options = (
        Option(
            "layer",
            kind=int,
            minimum=1,
            about="decoder layer K before which the step acts; default 2 of 32, scaled, at least 1",
        ),
    )

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        tokens, layers = model.tokens, model.layers
        layer = options.set_or("layer", scaled_layer(2, layers))
        check_layers(self.name, [layer], layers)

        def left(budget: int) -> int:
            return min(tokens, max(1, round((layers * budget - layer * tokens) / (layers - layer))))

        keep = check_budget(
            self.name, keep, lambda budget: mean_tokens(tokens, [(layer, left(budget))], layers), tokens
        )
        step = PlacedOp(before_layer(layer), AttentionTopK(), tokens, left(keep), "original")
        return Schedule(keep, (keep_all(model), step), options.resolved(layer=layer), has_cls=model.has_cls)
