"""VtxDivPrune (DivPrune, arXiv 2503.02175): the tokens whose smallest distance to each other is as large as greed can
make it.

The steps have the numbers of docs/ops/divprune.md: 1 distances of all pairs, 2 the token farthest from its nearest
neighbour, 3 again and again the token farthest from everything picked (the max-min diversity problem, greedily), 4 what
was picked in the order of the image. All as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import Op
from vtexport.pruning.ties import PARALLEL, SHIFT
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


@dataclass(frozen=True)
class DivPrune(Op):
    """Greedy max-min selection by cosine distance.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX): order [B, N] int64, the patches in the order
    they were picked. The reference adds step_margin [B, N]: by how much each pick's distance exceeded the next best
    (infinite for the last token of all).
    """

    op_type = "VtxDivPrune"

    def diagnostics(self) -> tuple[Tensor, ...]:
        return (Tensor("order", "BN", "int64"),)

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace, device

        from vtexport.pruning.arrays import gather_rows, integers

        features = inputs["features"]
        xp = array_namespace(features)
        picks = [_pick(xp, xp.astype(features[image, ...], xp.float64), sizes.keep) for image in range(sizes.batch)]
        indices = integers(xp, [sorted(order) for order, _ in picks], features)
        margins = xp.asarray([margin for _, margin in picks], dtype=xp.float64, device=device(features))
        details = {"order": integers(xp, [order for order, _ in picks], features), "step_margin": margins}
        return Selection(indices, gather_rows(xp, features, indices), details)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.parts_onnx import distinct_tokens, gather_rows, per_image

        def select_image(features: ir.Value) -> dict[str, ir.Value]:
            with g.scope("picks"):
                order = _emit_picks(g, features, tokens=sizes.tokens, keep=sizes.keep)
            kept = distinct_tokens(g, order, tokens=sizes.tokens, count=sizes.keep)
            return {"keep_indices": kept, "order": order}

        found = per_image(g, sizes.batch, [inputs["features"]], select_image)
        return {"kept_features": gather_rows(g, inputs["features"], found["keep_indices"]), **found}


def _pick(xp: Any, rows: Array, keep: int) -> tuple[list[int], list[float]]:
    """Tokens in the order of picking with the margins of the picks, from rows [T, D] float64."""
    from array_api_compat import device

    from vtexport.pruning.arrays import cosine_similarity, greedy, in_range, settled_cosines

    # 1. Distances, symmetric to the last bit: two tokens that are each other's nearest neighbours are a true tie. So
    # are tokens at equal distances, whatever the order of summation makes of them.
    cosine = cosine_similarity(xp, in_range(xp, rows))
    distance = 1.0 - settled_cosines(xp, 0.5 * (cosine + cosine.T))
    # 2. At first every token's distance to its nearest neighbour counts, itself aside.
    itself = xp.eye(rows.shape[0], dtype=xp.bool, device=device(rows))
    alone = xp.min(xp.where(itself, xp.inf, distance), axis=1)
    nearest = xp.full_like(alone, xp.inf)

    # 3. Then the distance to the nearest token picked.
    def step(round_: int, picked: int) -> Array:
        nonlocal nearest
        nearest = xp.minimum(nearest, distance[picked, :])
        return nearest

    return greedy(xp, keep, alone, step)


def _emit_picks(g: Builder, features: ir.Value, *, tokens: int, keep: int) -> ir.Value:
    """The same as [1, keep] int64, of one image's features [1, T, D]. A gain is minus a cosine, less SHIFT."""
    import numpy as np

    from vtexport.graphs.control_flow import choose
    from vtexport.pruning.parts_onnx import cosine_rows, gram, greedy

    cosine = gram(g, cosine_rows(g, g.as_float(g.Squeeze(features, [0]))), tokens)
    diagonal = np.arange(tokens)[:, None]
    others = g.ScatterElements(cosine, diagonal, np.full((tokens, 1), -2.0), axis=1)
    closest = g.ReduceMax(others, [1], keepdims=1)

    exact = [others, closest]

    def parallel(b: Builder) -> list[ir.Value]:
        return [b.Add(b.Where(b.Greater(each, PARALLEL), 1.0, each), SHIFT) for each in exact]

    def usual(b: Builder) -> list[ir.Value]:
        return [b.Add(each, SHIFT) for each in exact]

    is_any = g.Greater(g.ReduceMax(closest, keepdims=0), PARALLEL)
    others, closest = choose(g, is_any, parallel, usual, ["float32", "float32"])
    alone = g.Neg(g.Transpose(closest))

    def step(
        b: Builder, round_: ir.Value, picked: ir.Value, states: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        closest = b.Max(states[0], b.Gather(others, picked, axis=0))
        return b.Neg(closest), [closest]

    return greedy(g, keep, alone, [g.Expand(SHIFT - 2, [1, tokens])], step, tokens=tokens)
