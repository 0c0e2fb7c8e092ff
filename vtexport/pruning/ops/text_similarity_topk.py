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
    from vtexport.pruning.emit import Emitter


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

    def emit(self, e: Emitter, sizes: Sizes) -> dict[str, str]:
        from vtexport.pruning.parts_onnx import cosine_rows
        from vtexport.pruning.splice_onnx import keep_top, splice, visual_rows
        from vtexport.pruning.ties import PARALLEL, SHIFT

        length = e.Shape("hidden_states", start=1, end=2)
        among = e.Sub(e.Range(0, e.Squeeze(length, [0]), 1), "visual_start")
        is_text = e.Or(e.Less(among, 0), e.GreaterOrEqual(among, sizes.tokens))
        weights = e.Div(e.as_float(is_text), e.Max(1.0, e.as_float(e.Sub(length, sizes.tokens))))
        mean = e.MatMul(e.Unsqueeze(weights, [0]), e.as_float(e.Squeeze("hidden_states", [0])))
        cosines = e.MatMul(cosine_rows(e, visual_rows(e, "hidden_states", sizes)), e.Transpose(cosine_rows(e, mean)))
        settled = e.Add(e.Where(e.Greater(cosines, PARALLEL), 1.0, cosines), SHIFT)
        return splice(e, keep_top(e, e.Squeeze(settled, [1]), sizes.keep), sizes)
