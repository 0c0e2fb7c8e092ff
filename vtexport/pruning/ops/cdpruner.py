"""VtxCDPruner (CDPruner, arXiv 2506.10967): keep a set of tokens that is diverse, and relevant to the question.

The steps have the numbers of docs/ops/cdpruner.md: 1 cosines of all pairs, 2 every token's relevance to the question,
3 the kernel of a determinantal point process (DPP) out of both, 4 the set of largest determinant, greedily, 5 what was
picked in the order of the image. As in the authors' code but for defects of it, which that page lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.errors import InputError, UsageError
from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder

OFFSET = 1e-6  # keeps the least relevant token's relevance above 0, as in the authors' code
# A token with less than this share of its square left lies in the span of those picked; what is left is rounding.
SPANNED = 2.0**-14
EQUALLY_RELEVANT = 2.0**-14  # tokens whose mean cosines to the text span less than this are all as relevant
NOTHING_LEFT = 1e-20  # the share that such tokens get: below every real one, however irrelevant
COARSE = 2.0**-13  # r² is told apart from here on where it decides alone: among parallel tokens, which have to tie
MOST_THETA = 0.95  # beyond it the weights of relevance differ by more than float32's precision can use


@dataclass(frozen=True, kw_only=True)
class CDPruner(Op):
    """Greedy MAP inference of a DPP whose kernel is the tokens' cosines, weighted by relevance to the question.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX): order [B, N] int64, the patches in the order
    they were picked; relevance [B, T], r.
    The reference adds step_margin [B, N]: by how much each pick's gain d exceeded the next best (infinite for the last
    token of all).
    """

    op_type = "VtxCDPruner"

    relevance: str = setting(
        "llm",
        kind=str,
        choices=("llm", "clip", "none"),
        about="relevance by the language model's embeddings of the question, CLIP's joint space (code), or none",
    )
    negate: bool = setting(
        kind=bool, about="the least similar tokens are the most relevant; default: with clip (code), not with llm"
    )
    theta: float = setting(
        0.0, kind=float, minimum=0, about="weight of relevance against diversity, up to 0.95; 0 for r as it is (code)"
    )

    def signals(self) -> tuple[str, ...]:
        return {"llm": ("text",), "clip": ("joint_space", "joint_text"), "none": ()}[self.relevance]

    def diagnostics(self) -> tuple[Tensor, ...]:
        return Tensor("order", "BN", "int64"), Tensor("relevance", "BT")

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace, device

        from vtexport.pruning.arrays import gather_rows, integers

        if self.relevance == "llm" and sizes.embedding_width != sizes.width:
            raise InputError(
                f"text_embeds has width {sizes.embedding_width} and features {sizes.width}; with relevance=llm they "
                "are in one space, behind the projector"
            )
        features = inputs["features"]
        xp = array_namespace(features)
        images = []
        for image in range(sizes.batch):
            read = {name: xp.astype(each[image, ...], xp.float64) for name, each in inputs.items()}
            rows = read["features"]
            relevance = _relevance(xp, read.get("image_embeds", rows), read.get("text_embeds"), self)
            images.append((*_pick(xp, rows, relevance, sizes.keep), relevance))
        indices = integers(xp, [sorted(order) for order, _, _ in images], features)
        margins = xp.asarray([margin for _, margin, _ in images], dtype=xp.float64, device=device(features))
        details = {
            "order": integers(xp, [order for order, _, _ in images], features),
            "relevance": xp.stack([relevance for _, _, relevance in images]),
            "step_margin": margins,
        }
        return Selection(indices, gather_rows(xp, features, indices), details)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import cosine_rows, distinct_tokens, gather_rows, per_image

        if self.relevance == "llm" and sizes.embedding_width != sizes.width:
            raise UsageError(
                f"embedding_width={sizes.embedding_width} is not allowed with relevance=llm, which compares features "
                f"of width {sizes.width} with the text; give {sizes.width}"
            )

        def select_image(features: ir.Value, *read: ir.Value) -> dict[str, ir.Value]:
            with g.scope("relevance"):
                unit = cosine_rows(g, g.as_float(g.Squeeze(features, [0])))
                compared = cosine_rows(g, g.Squeeze(read[0], [0])) if self.relevance == "clip" else unit
                relevance = _emit_relevance(g, compared, read[-1] if read else None, sizes.tokens, self)
            with g.scope("picks"):
                order = _emit_picks(g, unit, relevance, tokens=sizes.tokens, keep=sizes.keep)
            kept = distinct_tokens(g, order, tokens=sizes.tokens, count=sizes.keep)
            return {"keep_indices": kept, "order": order, "relevance": relevance}

        found = per_image(g, sizes.batch, list(inputs.values()), select_image)
        return {"kept_features": gather_rows(g, inputs["features"], found["keep_indices"]), **found}


def exponent(theta: float) -> float:
    """The a of r <- exp(a r) that gives relevance the weight theta against diversity."""
    return theta / (2.0 * (1.0 - theta))


def _relevance(xp: Any, rows: Array, text: Array | None, op: CDPruner) -> Array:
    """Step 2: r [T] of rows [T, W] to text [M, W], both float64. Without a text every token has 1."""
    from vtexport.pruning.arrays import in_range, settled, unit_rows

    if text is None:
        return xp.ones_like(rows[:, 0])
    mean = xp.mean(unit_rows(xp, in_range(xp, rows)) @ unit_rows(xp, in_range(xp, text)).T, axis=1)
    mean = settled(xp, -mean if op.negate else mean)
    lowest = xp.min(mean)
    span = xp.max(mean) - lowest
    spread = xp.zeros_like(mean) if float(span) < EQUALLY_RELEVANT else mean - lowest
    relevance = (spread + OFFSET) / xp.where(span < EQUALLY_RELEVANT, xp.ones_like(span) * OFFSET, span)
    return relevance if op.theta == 0 else xp.exp(exponent(op.theta) * (relevance - 1.0))


def _pick(xp: Any, rows: Array, relevance: Array, keep: int) -> tuple[list[int], list[float]]:
    """Steps 1, 3 and 4: tokens in the order of picking with the margins of the picks, from rows [T, W] float64.

    The gain of a token is d_i = r_i² s_i, with s_i the share of its unit vector outside the span of those picked. The
    relevance stays outside the recursion: it cancels in the kernel's Cholesky rows, up to their columns' factors r.
    """
    from array_api_compat import device

    from vtexport.pruning.arrays import cosine_similarity, greedy, in_range, settled

    cosine, weight = cosine_similarity(xp, in_range(xp, rows)), relevance * relevance
    # At the start all of every token that is not zero is left: exactly, so that equal tokens are true ties.
    share = xp.astype(xp.linalg.diagonal(cosine) > 0.5, xp.float64)
    cholesky = xp.zeros((keep, rows.shape[0]), dtype=xp.float64, device=device(rows))

    coarse = settled(xp, weight, COARSE)

    def gain() -> Array:
        return xp.where(share > SPANNED, weight * settled(xp, share), coarse * NOTHING_LEFT)

    def step(round_: int, picked: int) -> Array:
        nonlocal share
        row = cosine[picked, :] - cholesky[:round_, picked] @ cholesky[:round_, :]
        row = row / math.sqrt(max(float(share[picked]), SPANNED))
        cholesky[round_, :] = row
        share = share - row * row
        return gain()

    return greedy(xp, keep, coarse * share, step)


def _emit_relevance(g: Builder, unit: ir.Value, text: ir.Value | None, tokens: int, op: CDPruner) -> ir.Value:
    """Step 2 as [1, T], of unit rows [T, W] and text [1, M, W]."""
    import numpy as np

    from vtexport.pruning.parts_onnx import cosine_rows

    if text is None:
        return g.constant(np.ones((1, tokens), np.float32))
    # The mean of the cosines to every text token is the product with the mean of their unit vectors.
    direction = g.ReduceMean(cosine_rows(g, g.Squeeze(text, [0])), [0], keepdims=1)
    mean = g.Gemm(direction, unit, transB=1, alpha=-1.0 if op.negate else 1.0)
    lowest = g.ReduceMin(mean, [1], keepdims=1)
    span = g.Sub(g.ReduceMax(mean, [1], keepdims=1), lowest)
    differ = g.GreaterOrEqual(span, EQUALLY_RELEVANT)
    spread = g.Where(differ, g.Sub(mean, lowest), 0.0)
    relevance = g.Div(g.Add(spread, OFFSET), g.Where(differ, span, OFFSET))
    if op.theta > 0:
        relevance = g.Exp(g.Mul(exponent(op.theta), g.Sub(relevance, 1.0)))
    return relevance


def _emit_picks(g: Builder, unit: ir.Value, relevance: ir.Value, *, tokens: int, keep: int) -> ir.Value:
    """Steps 1, 3 and 4 as [1, keep] int64, of unit rows [T, W] and r [1, T]."""
    import numpy as np

    from vtexport.pruning.parts_onnx import gram, greedy

    cosine, weight = gram(g, unit, tokens), g.Mul(relevance, relevance)
    diagonal = g.GatherElements(cosine, np.arange(tokens)[:, None], axis=1)
    share = g.as_float(g.Greater(g.Transpose(diagonal), 0.5))
    coarse = g.Mul(g.Round(g.Mul(weight, 1 / COARSE)), COARSE)
    spanned = g.Mul(coarse, NOTHING_LEFT)

    def gain(b: Builder, share: ir.Value) -> ir.Value:
        return b.Where(b.Greater(share, SPANNED), b.Mul(weight, share), spanned)

    def step(
        b: Builder, round_: ir.Value, picked: ir.Value, states: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        share, cholesky = states
        own = b.Gather(cholesky, picked, axis=1)  # [keep, 1], 0 in rows to come
        row = b.Gemm(own, cholesky, b.Gather(cosine, picked, axis=0), transA=1, alpha=-1.0)
        row = b.Div(row, b.Sqrt(b.Max(SPANNED, b.Gather(share, picked, axis=1))))
        share = b.Sub(share, b.Mul(row, row))
        cholesky = b.ScatterND(cholesky, b.Reshape(round_, [1, 1]), row)
        return gain(b, share), [share, cholesky]

    return greedy(g, keep, g.Mul(coarse, share), [share, g.Expand(0.0, [keep, tokens])], step, tokens=tokens)
