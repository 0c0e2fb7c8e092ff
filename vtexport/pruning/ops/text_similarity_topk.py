"""VtxTextSimilarityTopK: the visual tokens that are most like the text (Nüwa, arXiv 2602.02951, stage 2 of the paper).

With the hidden states h of the step's input and t the mean of the text's rows, which are all that are no visual tokens:
r_i = cos(h_i, t). The n' largest stay, in their order. The released code takes the last token's attention instead
(`attention_topk`).
"""

from __future__ import annotations

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
class TextSimilarityTopK(DecoderOp):
    """The n' visual tokens of largest cosine to the text's mean.

    `details`: scores [1, n], margin [1] (gap at the cut).
    """

    op_type = "VtxTextSimilarityTopK"

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from vtexport.pruning.arrays import in_range, settled_cosines, unit_rows

        xp = check_decoder_inputs(inputs)
        start = int(inputs["visual_start"][0])
        rows, end = xp.astype(inputs["hidden_states"][0, ...], xp.float64), start + sizes.tokens
        text = xp.concat([rows[:start, ...], rows[end:, ...]])
        mean = xp.sum(text, axis=0, keepdims=True) / max(1, text.shape[0])
        visual = unit_rows(xp, in_range(xp, rows[start:end, ...]))
        cosines = settled_cosines(xp, (visual @ unit_rows(xp, in_range(xp, mean)).T)[:, 0])
        return keep_top(xp, inputs, cosines, sizes)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import cosine_rows
        from vtexport.pruning.splice_onnx import keep_top, splice, visual_rows
        from vtexport.pruning.ties import PARALLEL, SHIFT

        hidden, start = inputs["hidden_states"], inputs["visual_start"]
        with g.scope("scores"):
            length = g.Shape(hidden, start=1, end=2)
            among = g.Sub(g.Range(0, g.Squeeze(length, [0]), 1), start)
            is_text = g.Or(g.Less(among, 0), g.GreaterOrEqual(among, sizes.tokens))
            weights = g.Div(g.as_float(is_text), g.Max(1.0, g.as_float(g.Sub(length, sizes.tokens))))
            mean = g.MatMul(g.Unsqueeze(weights, [0]), g.as_float(g.Squeeze(hidden, [0])))
            visual = cosine_rows(g, visual_rows(g, inputs, "hidden_states", sizes))
            cosines = g.MatMul(visual, g.Transpose(cosine_rows(g, mean)))
            settled = g.Add(g.Where(g.Greater(cosines, PARALLEL), 1.0, cosines), SHIFT)
        return splice(g, inputs, keep_top(g, g.Squeeze(settled, [1]), sizes.keep), sizes)
