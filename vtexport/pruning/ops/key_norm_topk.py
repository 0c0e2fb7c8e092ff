"""VtxKeyNormTopK: the visual tokens whose mean key is shortest (ViTCoP, arXiv 2601.17818, stage III).

l_i = |mean over heads of k_i|: the mean of the vectors first, then the norm. A small norm means much attention received
and is kept. Rotary positions turn all heads of a token alike and leave l as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import DecoderOp, check_decoder_inputs, visual_rows
from vtexport.pruning.topk import keep_top
from vtexport.pruning.types import Array, Selection, Sizes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

LARGEST = 1e30  # a sum of 3840 of them is still a number in float32


@dataclass(frozen=True)
class KeyNormTopK(DecoderOp):
    """The n' visual tokens of smallest l. `details`: scores [1, n] (-l), margin [1] (gap at the cut)."""

    op_type = "VtxKeyNormTopK"

    def signals(self) -> tuple[str, ...]:
        return ("layer_keys",)

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        xp = check_decoder_inputs(inputs)
        return keep_top(xp, inputs, -key_norms(xp, visual_rows(inputs, "keys", sizes)), sizes)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.splice_onnx import keep_top, splice

        kept = keep_top(g, emit_key_norms(g, inputs, sizes), sizes.keep, largest=False)
        return splice(g, inputs, kept, sizes)


def key_norms(xp: Any, keys: Array) -> Array:
    """l [n] float64 of `keys` [n, kv_heads, head_dim]."""
    mean = xp.mean(xp.astype(keys, xp.float64), axis=1)
    return xp.sqrt(xp.sum(mean * mean, axis=1))


def emit_key_norms(g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> ir.Value:
    """l [n] of the visual tokens; `LARGEST` where it is larger or NaN, so that sums and orders of them hold."""
    from vtexport.pruning.splice_onnx import visual_rows

    with g.scope("key_norms"):
        mean = g.ReduceMean(visual_rows(g, inputs, "keys", sizes), [1], keepdims=0)
        norms = g.Sqrt(g.ReduceSum(g.Mul(mean, mean), [1], keepdims=0))
        return g.Where(g.Less(norms, LARGEST), norms, LARGEST)
