"""VtxPruneSID (PruneSID, arXiv 2603.09480): group tokens by principal components, thin every group, share the budget.

The steps have the numbers of docs/ops/prunesid.md: 1 grouping by principal semantic components (PSCA), 2 redundancy and
threshold, 3 intra-group non-maximum suppression (NMS), 4 budget per group, 5 order of the output. Principal components
are exact, where the authors' code has randomised ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtexport.pruning.op import Op
from vtexport.pruning.options import setting
from vtexport.pruning.ties import ALIKE, CENTRED, PARALLEL, STEP, WEAKEST_GROUP
from vtexport.pruning.types import Array, Selection, Sizes, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


@dataclass(frozen=True, kw_only=True)
class PruneSID(Op):
    """Group by principal components, suppress near-duplicates within groups, share the budget among the groups.

    Intermediate values (`Selection.details`, and `diagnostics` in ONNX), K groups, T patches:
    groups [B, T] int64; sizes, survivors (m_g), taken (n_g) [B, K] int64; rho, tau [B].
    The reference adds scores [B, T] (what ranked the tokens) and eigenvalues [B, T], and how far the selection is from
    being another one: group_margin [B, T] (largest minus second-largest |V|), nms_margin [B] (least |S - tau| of the
    comparisons made).
    The ONNX form adds residual [B]: the eigenvectors' worst residual over the largest eigenvalue.
    """

    op_type = "VtxPruneSID"

    groups: int = setting(kind=int, minimum=1, about="number of groups K; default keep // 4, in qwen at least 4")
    threshold_scale: float = setting(
        kind=float,
        above=0,
        about="similarity threshold over mean similarity; default keep / 32, in qwen 18 keep / tokens, at least 1",
    )
    center: str = setting(
        kind=str,
        choices=("token", "feature"),
        about="what is centred before the components: each token over its features, or each feature (paper)",
    )
    nms_score: str = setting(
        kind=str,
        choices=("cls_attention", "abs_v"),
        about="what ranks a group's tokens: attention from CLS (official) or the size of its component (paper, qwen)",
    )
    order: str = setting(
        kind=str,
        choices=("group", "raster"),
        about="order of the kept tokens: by group, or by position (qwen above 150 tokens)",
    )
    cls_slot: bool = setting(
        kind=bool,
        about="CLS is kept as the first token and counts in the budget; default only in official, on towers with CLS",
    )
    redundancy: str = setting(
        kind=str,
        choices=("pairs", "triangle"),
        about="mean similarity: over the pairs, or the upper triangle with its diagonal over all T² entries (qwen)",
    )
    shares: str = setting(
        kind=str,
        choices=("bounded", "proportional"),
        about="budget of a group: at least 1 and at most 5 per 64 kept, or its share of the survivors alone (paper)",
    )

    @property
    def takes_cls(self) -> bool:
        return self.cls_slot

    def signals(self) -> tuple[str, ...]:
        return ("cls_attention",) if self.nms_score == "cls_attention" else ()

    def diagnostics(self) -> tuple[Tensor, ...]:
        by_group = (Tensor(name, "BK", "int64") for name in ("sizes", "survivors", "taken"))
        return (Tensor("groups", "BT", "int64"), *by_group, *(Tensor(each, "B") for each in ("rho", "tau", "residual")))

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import gather_rows, integers

        features, scores = inputs["features"], inputs.get("scores")
        xp, slot = array_namespace(features), int(self.cls_slot)
        images = []
        for image in range(features.shape[0]):
            patches = xp.astype(features[image, slot:, :], xp.float64)
            score = None if scores is None else xp.astype(scores[image, :], xp.float32)
            images.append(_select_image(xp, patches, score, sizes.keep, self))
        rows = integers(xp, [[0] * slot + [patch + slot for patch in chosen] for chosen, _ in images], features)
        details = {name: xp.stack([each[name] for _, each in images]) for name in images[0][1]}
        return Selection(rows - slot, gather_rows(xp, features, rows), details)

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.ops.prunesid_onnx import emit_prunesid

        return emit_prunesid(g, inputs, sizes, **self.settings())


def _select_image(
    xp: Any, patches: Array, score: Array | None, keep: int, op: PruneSID
) -> tuple[list[int], dict[str, Array]]:
    """Patches to keep, in output order, for one image: `patches` [T, D] float64, `score` [T] float32."""
    from array_api_compat import device

    from vtexport.pruning.arrays import (
        cosine_similarity,
        descending_order,
        in_range,
        integers,
        leading_eigenvectors,
        settled,
        sigmoid,
        strong,
    )

    tokens, count = patches.shape[0], op.groups

    # 1. PSCA: a token belongs to the component in which it is largest; the sign of a component does not matter.
    y = sigmoid(xp, patches)
    y = y - xp.mean(y, axis=1 if op.center == "token" else 0, keepdims=True)
    components, eigenvalues = leading_eigenvectors(xp, y @ y.T, count)
    is_there = strong(xp, eigenvalues, WEAKEST_GROUP, CENTRED * tokens * patches.shape[1])
    loading = settled(xp, xp.where(is_there[:count], xp.abs(components), xp.zeros_like(components)), STEP)
    group_of = xp.argmax(loading, axis=1)
    is_own = integers(xp, list(range(count)), patches)[None, :] == group_of[:, None]
    own = xp.sum(xp.where(is_own, loading, xp.zeros_like(loading)), axis=1)
    others = xp.where(is_own, -1.0, loading)
    if score is None:
        score = own

    # 2. Redundancy: the mean cosine over the pairs of different tokens; the threshold is a multiple of it.
    cosine = cosine_similarity(xp, in_range(xp, patches))
    diagonal = xp.sum(xp.linalg.diagonal(cosine))
    pairs = (xp.sum(cosine) - diagonal) / 2
    rho = pairs / (tokens * (tokens - 1) / 2)
    if op.redundancy == "triangle":
        rho = (pairs + diagonal) / tokens**2
    tau = (1.0 if float(rho) > PARALLEL else rho) * op.threshold_scale + xp.zeros_like(rho)

    # 3. NMS in every group, then 4. the budget of every group.
    best_first = descending_order(xp, score)
    members: list[list[int]] = [[] for _ in range(count)]
    for token, group in zip(best_first.tolist(), xp.take(group_of, best_first).tolist(), strict=True):
        members[group].append(token)
    limit = _limit(float(tau))
    suppression = [_suppress(ranked, score.tolist(), cosine, limit) for ranked in members]
    sizes = [len(ranked) for ranked in members]
    survivors = [len(kept) for kept, _, _ in suppression]
    bounded = op.shares == "bounded"
    taken = allocate(sizes, survivors, keep=keep, cls_slots=int(bool(op.cls_slot)), bounded=bounded)

    # 5. Survivors of a group by score, then its suppressed tokens by score, cut at the budget; group after group.
    chosen = []
    for (kept, suppressed, _), share in zip(suppression, taken, strict=True):
        chosen += (kept + suppressed)[:share]
    if op.order == "raster":
        chosen.sort()
    margin = min(each for _, _, each in suppression)
    details = {
        "scores": score,
        "groups": xp.astype(group_of, xp.int64),
        "sizes": integers(xp, sizes, patches),
        "survivors": integers(xp, survivors, patches),
        "taken": integers(xp, taken, patches),
        "rho": rho,
        "tau": tau,
        "eigenvalues": eigenvalues,
        "group_margin": own - xp.max(others, axis=1),
        "nms_margin": xp.asarray(margin, dtype=xp.float64, device=device(patches)),
    }
    return chosen, details


def _limit(tau: float) -> float:
    """The least that a cosine has to exceed to be above tau; parallel rows are at 1, above nothing from 1 on."""
    limit = tau + ALIKE
    return min(limit, PARALLEL) if limit < 1 else math.inf


def _suppress(ranked: list[int], score: list[float], cosine: Array, limit: float) -> tuple[list[int], list[int], float]:
    """One group's NMS: survivors, suppressed tokens (both by descending score), least |S - limit| compared.

    The best token left survives and suppresses the tokens more similar to it than the limit. A token without positive
    score never survives and suppresses nothing.
    """
    kept: list[int] = []
    suppressed: list[int] = []
    margin = math.inf
    for token in ranked:
        if not score[token] > 0:
            suppressed.append(token)
            continue
        similar = False
        for better in kept:
            similarity = float(cosine[better, token])
            margin = min(margin, abs(similarity - limit))
            if similarity > limit:
                similar = True
                break
        (suppressed if similar else kept).append(token)
    return kept, suppressed, margin


def allocate(sizes: list[int], survivors: list[int], *, keep: int, cls_slots: int, bounded: bool = True) -> list[int]:
    """Tokens to take from every group: `keep - cls_slots` in total (step 4 of docs/ops/prunesid.md).

    Args:
        sizes, survivors: Members and NMS survivors of every group (s_g and m_g).
        keep: The budget N, at least the number of groups that are not empty plus `cls_slots`, at most the number of
            tokens plus `cls_slots`.
        cls_slots: 1 if CLS takes one of the N places, else 0.
        bounded: every group that is not empty gives one token, and none more than 5 for each 64 of the budget.
    """
    from vtexport.pruning.arrays import round_half_even

    floor = [min(int(bounded), size) for size in sizes]
    cap = 5 * -(-keep // 64) if bounded else keep
    upper = [min(cap, size, alive) for size, alive in zip(sizes, survivors, strict=True)]
    while sum(upper) < keep and upper != sizes:  # too few survivors: suppressed tokens become eligible, evenly
        upper = [min(bound + 1, size) for bound, size in zip(upper, sizes, strict=True)]

    extra = max(0, keep - cls_slots - sum(floor))
    taken, before, running = [], 0, 0
    for group, alive in enumerate(survivors):
        running += alive
        until = round_half_even(running * extra, max(1, sum(survivors)))
        taken.append(min(floor[group] + until - before, upper[group]))
        before = until

    missing = sum(floor) + extra - sum(taken)
    for group in sorted(range(len(sizes)), key=lambda each: -survivors[each]):  # stable: ties to the lower group
        more = min(upper[group] - taken[group], missing)
        taken[group] += more
        missing -= more
    return taken
