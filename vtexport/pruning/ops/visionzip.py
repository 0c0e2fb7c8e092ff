"""VtxVisionZip (VisionZip, arXiv 2412.04467): keep the tokens that CLS attends to, merge the others into a few.

The steps have the numbers of docs/ops/visionzip.md: 1 dominant tokens by CLS attention, 2 targets at even distances
among the others, 3 every other token joins the target with the most similar key, 4 a contextual token is its target
plus the mean of what joined it. All as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.ties import PARALLEL, SHIFT
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder, Operand


@dataclass(frozen=True, kw_only=True)
class VisionZip(Op):
    """CLS and the tokens it attends to most, then contextual tokens that each stand for many of the others.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX): assigned [B, T] int64, which contextual token
    (from 0) a patch was merged into, -1 for dominant ones and targets.
    The reference adds how far the selection is from being another one: dominant_margin [B] (least dominant score minus
    the largest other one) and assign_margin [B] (least lead of a token's best cosine over its second).
    """

    op_type = "VtxVisionZip"
    merges = True
    has_native = False

    contextual: int = setting(
        kind=int,
        minimum=1,
        about="merged tokens in the budget, CLS and dominant ones are the rest; default 10/64",
    )

    @property
    def takes_cls(self) -> bool:
        return True

    def signals(self) -> tuple[str, ...]:
        return "cls_attention", "keys"

    def diagnostics(self) -> tuple[Tensor, ...]:
        return (Tensor("assigned", "BT", "int64"),)

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace, device

        from vtexport.pruning.arrays import gather_rows, integers

        features, scores, keys = inputs["features"], inputs["scores"], inputs["keys"]
        xp, count = array_namespace(features), self.contextual
        images = [
            _select_image(xp, features[image, 1:, :], scores[image, :], keys[image, ...], sizes.keep, count)
            for image in range(features.shape[0])
        ]
        indices = integers(xp, [[-1, *image["kept"]] for image in images], features)
        copied = gather_rows(xp, features, indices + 1)
        merged = xp.stack([image["merged"] for image in images])
        contextual = xp.astype(xp.stack([image["contextual"] for image in images]), features.dtype)
        rows = sizes.keep - count
        contextual = xp.where(merged[..., None], contextual, copied[:, rows:, :])
        copies = xp.zeros((features.shape[0], rows), dtype=xp.bool, device=device(features))
        details = {name: xp.stack([image["details"][name] for image in images]) for name in images[0]["details"]}
        return Selection(
            indices,
            xp.concat([copied[:, :rows, :], contextual], axis=1),
            details,
            xp.concat([copies, merged], axis=1),
        )

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        import numpy as np

        from vtexport.pruning.parts_onnx import gather_rows, per_image

        count = self.contextual
        found = per_image(
            g,
            sizes.batch,
            [inputs[name] for name in ("features", "scores", "keys")],
            lambda *each: _emit_image(g, *each, tokens=sizes.tokens, keep=sizes.keep, count=count),
        )
        rows = sizes.keep - count
        copied = gather_rows(g, inputs["features"], g.Add(found["keep_indices"], 1))
        kept, targets = g.Split(copied, [rows, count], outputs=2, axis=1)
        merged = g.Unsqueeze(found["merged"], [2])
        contextual = g.Where(merged, g.CastLike(found["contextual"], inputs["features"]), targets)
        copies = np.zeros((sizes.batch, rows), bool)
        return {
            "kept_features": g.Concat(kept, contextual, axis=1),
            "keep_indices": found["keep_indices"],
            "merged": g.Concat(copies, found["merged"], axis=1),
            "assigned": found["assigned"],
        }


def targets_among(rest: int, count: int) -> tuple[list[int], list[int]]:
    """Step 2: places of the `count` targets among `rest` tokens, and the places of the others.

    Every (rest // count)-th is a target, from the first on, as in the authors' code.
    """
    step = rest // count
    targets = [place * step for place in range(count)]
    return targets, sorted(set(range(rest)) - set(targets))


def _select_image(xp: Any, patches: Array, score: Array, keys: Array, keep: int, count: int) -> dict[str, Any]:
    """One image, from patches [T, D], scores [T] and keys [T, H, K].

    Returns `kept`, the patches in output order; `contextual` [count, D] float64; `merged` [count]; and the details.
    """
    from array_api_compat import device

    from vtexport.pruning.arrays import cosine_similarity, descending_order, in_range, integers, settled_cosines

    tokens, rows = patches.shape[0], keep - count - 1
    # 1. Dominant tokens.
    score = xp.astype(score, xp.float32)
    order = descending_order(xp, score)
    dominant, rest = sorted(order[:rows].tolist()), sorted(order[rows:].tolist())
    ranked = [float(each) for each in xp.take(score, order)]
    margin = ranked[rows - 1] - ranked[rows] if rows else float("inf")

    # 2. Targets, and 3. which of them every other token joins.
    target_places, other_places = targets_among(len(rest), count)
    targets, others = [rest[place] for place in target_places], [rest[place] for place in other_places]
    metric = xp.mean(xp.astype(keys, xp.float64), axis=1)
    assigned, lead = integers(xp, [-1] * tokens, patches), float("inf")
    contextual = xp.take(xp.astype(patches, xp.float64), integers(xp, targets, patches), axis=0)
    counts = xp.zeros(count, dtype=xp.float64, device=device(patches))
    if others:
        given, joined = integers(xp, others, patches), integers(xp, targets, patches)
        cosine = settled_cosines(xp, cosine_similarity(xp, in_range(xp, metric)))
        cosine = xp.take(xp.take(cosine, given, axis=0), joined, axis=1)
        nearest = xp.argmax(cosine, axis=1)
        if count > 1:
            best = xp.sort(cosine, axis=1)
            lead = float(xp.min(best[:, -1] - best[:, -2]))
        # 4. A contextual token is its target plus the mean of the tokens that joined it.
        member = xp.astype(nearest[None, :] == integers(xp, list(range(count)), patches)[:, None], xp.float64)
        counts = xp.sum(member, axis=1)
        sums = member @ xp.take(xp.astype(patches, xp.float64), given, axis=0)
        contextual = contextual + sums / xp.where(counts > 0, counts, xp.ones_like(counts))[:, None]
        places = dict(zip(others, nearest.tolist(), strict=True))
        assigned = integers(xp, [places.get(token, -1) for token in range(tokens)], patches)
    return {
        "kept": dominant + targets,
        "contextual": contextual,
        "merged": counts > 0,
        "details": {
            "assigned": assigned,
            "dominant_margin": xp.asarray(margin, dtype=xp.float64, device=device(patches)),
            "assign_margin": xp.asarray(lead, dtype=xp.float64, device=device(patches)),
        },
    }


def _emit_image(
    g: Builder, features: ir.Value, scores: ir.Value, keys: ir.Value, *, tokens: int, keep: int, count: int
) -> dict[str, ir.Value]:
    """One image's values with a first axis of 1, from features [1, 1 + T, D], scores [1, T] and keys [1, T, H, K]."""
    import numpy as np

    from vtexport.pruning.parts_onnx import cosine_rows, in_raster_order, without_nan

    rows = keep - count - 1
    left = tokens - rows
    # 1. Dominant tokens.
    with g.scope("dominant"):
        _, order = g.TopK(without_nan(g, scores), [tokens], outputs=2, axis=1)
        rest = in_raster_order(g, g.Slice(order, [rows], [tokens], [1]), left)

    # 2. Targets: their places among the rest are known beforehand.
    target_places, other_places = targets_among(left, count)
    targets = g.Gather(rest, np.array(target_places), axis=1)
    kept: list[Operand] = [np.array([[-1]]), targets]
    if rows:
        kept.insert(1, in_raster_order(g, g.Slice(order, [0], [rows], [1]), rows))
    indices = g.Concat(*kept, axis=1)
    nobody = np.full((1, tokens), -1)
    patches = g.Squeeze(features, [0])
    rows_of_targets = g.as_float(g.Gather(patches, g.Add(g.Squeeze(targets, [0]), 1)))
    if not other_places:
        unmerged = g.constant(np.zeros((1, count), bool))
        contextual = g.Unsqueeze(rows_of_targets, [0])
        return {"keep_indices": indices, "contextual": contextual, "merged": unmerged, "assigned": g.constant(nobody)}

    # 3. Every other token joins the target with the most similar key, the mean over heads.
    with g.scope("assign"):
        metric = cosine_rows(g, g.Squeeze(g.ReduceMean(keys, [2], keepdims=0), [0]))
        others = g.Gather(g.Squeeze(rest, [0]), np.array(other_places))
        cosine = g.Gemm(g.Gather(metric, others), g.Gather(metric, g.Squeeze(targets, [0])), transB=1)
        cosine = g.Add(g.Where(g.Greater(cosine, PARALLEL), 1.0, cosine), SHIFT)
        nearest = g.Transpose(g.ArgMax(cosine, axis=1, keepdims=1))

    # 4. Sums by a product with the membership matrix: TensorRT has no scatter that adds.
    with g.scope("merge"):
        member = g.as_float(g.Equal(nearest, np.arange(count)[:, None]))
        counts = g.total(member, 1)
        sums = g.MatMul(member, g.as_float(g.Gather(patches, g.Add(others, 1))))
        contextual = g.Add(rows_of_targets, g.Div(sums, g.Max(1.0, counts)))
    return {
        "keep_indices": indices,
        "contextual": g.Unsqueeze(contextual, [0]),
        "merged": g.Transpose(g.Greater(counts, 0.0)),
        "assigned": g.ScatterElements(nobody, g.Unsqueeze(others, [0]), nearest, axis=1),
    }
