"""VtxAttentionTopK: the visual tokens that the last token of the prompt looks at most.

FastV (arXiv 2403.06764), Nüwa's second stage (arXiv 2602.02951) and PyramidDrop (arXiv 2410.17247) choose by it, at
different layers: r_i = mean over heads of softmax(q k / sqrt(d))[last row, i]; the n' largest stay, in their order.
Only the one row is computed, from the layer's query of the last row and its keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.op import DecoderOp, check_decoder_inputs
from vtexport.pruning.topk import keep_top
from vtexport.pruning.types import Array, Selection, Sizes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


@dataclass(frozen=True)
class AttentionTopK(DecoderOp):
    """The n' visual tokens of largest attention from the last row.

    `details`: scores [1, n], margin [1] (gap at the cut).
    """

    op_type = "VtxAttentionTopK"

    def signals(self) -> tuple[str, ...]:
        return "layer_keys", "layer_query"

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        xp = check_decoder_inputs(inputs)
        keys, query = (xp.astype(inputs[name][0, ...], xp.float64) for name in ("keys", "query"))
        rows = keys.shape[0]
        groups = sizes.heads // sizes.kv_heads
        query = xp.reshape(query, (sizes.kv_heads, groups, sizes.head_dim)) / math.sqrt(sizes.head_dim)
        logits = query @ xp.permute_dims(keys, (1, 2, 0))  # [kv_heads, groups, S]
        weights = xp.exp(logits - xp.max(logits, axis=2, keepdims=True))
        weights = weights / xp.sum(weights, axis=2, keepdims=True)
        attention = xp.mean(xp.reshape(weights, (sizes.heads, rows)), axis=0)
        start = int(inputs["visual_start"][0])
        return keep_top(xp, inputs, attention[start : start + sizes.tokens], sizes)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        import numpy as np

        from vtexport.pruning.splice_onnx import keep_top, splice

        groups = sizes.heads // sizes.kv_heads
        with g.scope("scores"):
            query = g.Reshape(g.as_float(inputs["query"]), [sizes.kv_heads, groups, sizes.head_dim])
            keys = g.Transpose(g.as_float(g.Squeeze(inputs["keys"], [0])), perm=[1, 2, 0])
            weights = g.Softmax(g.MatMul(g.Mul(query, sizes.head_dim**-0.5), keys), axis=2)
            attention = g.ReduceMean(weights, [0, 1], keepdims=0)
            scores = g.Gather(attention, g.Add(inputs["visual_start"], np.arange(sizes.tokens)))
        return splice(g, inputs, keep_top(g, scores, sizes.keep), sizes)
