"""VtxAttentionTopK: the visual tokens that the last token of the prompt looks at most.

FastV (arXiv 2403.06764), Nüwa's second stage (arXiv 2602.02951) and PyramidDrop (arXiv 2410.17247) choose by it, at
different layers: r_i = mean over heads of softmax(q k / sqrt(d))[last row, i]; the n' largest stay, in their order.
Only the one row is computed, from the layer's query of the last row and its keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vtexport.pruning.llm.step import LLMOp, LLMSelection, LLMSizes, checked_step
from vtexport.pruning.method import Array

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter


class AttentionTopK(LLMOp):
    """The n' visual tokens of largest attention from the last row. `details`: scores [n], margin (gap at the cut)."""

    op_type = "VtxAttentionTopK"
    signals = ("keys", "query")

    def select(
        self, hidden: Array, visual_start: int, signals: Mapping[str, Array], *, sizes: LLMSizes, parameters: Any
    ) -> LLMSelection:
        xp = checked_step(hidden, signals)
        keys, query = (xp.astype(signals[name], xp.float64) for name in self.signals)
        rows = keys.shape[0]
        groups = sizes.heads // sizes.kv_heads
        query = xp.reshape(query, (sizes.kv_heads, groups, sizes.head_dim)) / math.sqrt(sizes.head_dim)
        logits = query @ xp.permute_dims(keys, (1, 2, 0))  # [kv_heads, groups, S]
        weights = xp.exp(logits - xp.max(logits, axis=2, keepdims=True))
        weights = weights / xp.sum(weights, axis=2, keepdims=True)
        attention = xp.mean(xp.reshape(weights, (sizes.heads, rows)), axis=0)
        return select_top(xp, hidden, visual_start, attention[visual_start : visual_start + sizes.tokens], sizes.keep)

    def emit(self, e: Emitter, *, sizes: LLMSizes, parameters: Any) -> dict[str, str]:
        import numpy as np

        from vtexport.pruning.llm.parts_onnx import keep_top, splice

        groups = sizes.heads // sizes.kv_heads
        query = e.Reshape(e.as_float("query"), [sizes.kv_heads, groups, sizes.head_dim])
        keys = e.Transpose(e.as_float(e.Squeeze("keys", [0])), perm=[1, 2, 0])
        weights = e.Softmax(e.MatMul(e.Mul(query, sizes.head_dim**-0.5), keys), axis=2)
        attention = e.ReduceMean(weights, [0, 1], keepdims=0)
        scores = e.Gather(attention, e.Add("visual_start", np.arange(sizes.tokens)))
        return splice(e, keep_top(e, scores, sizes.keep), sizes)


def select_top(xp: Any, hidden: Array, visual_start: int, scores: Array, keep: int) -> LLMSelection:
    """The rows of the `keep` largest of `scores` [n], ascending; ties to the lower index."""
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order

    order = descending_order(xp, scores)
    kept = xp.sort(order[:keep])
    ranked = xp.take(scores, order)
    margin = ranked[keep - 1] - ranked[keep] if keep < scores.shape[0] else xp.asarray(math.inf, device=device(scores))
    details = {"scores": scores, "margin": margin}
    return LLMSelection(kept, xp.take(hidden, kept + visual_start, axis=0), details)
