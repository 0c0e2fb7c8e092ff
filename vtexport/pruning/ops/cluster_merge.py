"""VtxClusterMerge: one merged token for each cluster, the most important ones beside it (ViTCoP, arXiv 2601.17818, II).

With l_i the length of the mean key (`key_norm_topk`; short means important), s_c the size of cluster c, K the number of
clusters that are not empty and n' tokens to keep: cluster c keeps its q_c most important tokens as they are, about
(s_c - 1) (n' - K) / (n - K) of them, and one token stands for the rest M of it: the middle one of M, to which the mean
of M is added. Where K > n', the n' - 1 clusters of smallest summed l become one merged token each and all others one
together. What is left keeps the order of the tokens; a merged one stands at the place of its middle token.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.op import DecoderOp, check_decoder_inputs, visual_rows
from vtexport.pruning.ops.key_norm_topk import emit_key_norms, key_norms
from vtexport.pruning.options import setting
from vtexport.pruning.types import Array, Selection, Sizes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vtexport.graphs.builder import Builder


@dataclass(frozen=True, kw_only=True)
class ClusterMerge(DecoderOp):
    """The n' rows of clusters: kept tokens and merged ones. The label -1 is a cluster too, before the others.

    `details`: saliency [1, n] (l), quotas [1, K] int64 (q_c of the clusters there are; 0 where K > n'), keep_margin [1]
    (least gap of l at a cluster's cut; where K > n', of the summed l at the cut), total_margin [1] (least gap of the
    summed l of two clusters where that decided a quota, else infinite).
    """

    op_type = "VtxClusterMerge"
    merges = True

    clusters: int = setting(1, kind=int, minimum=1, about="labels run from 0 to clusters - 1, and -1 for none")
    merge: str = setting(
        "sum",
        kind=str,
        choices=("sum", "mean"),
        about="a merged token of stage 2: its middle token plus the mean of all (code), or the mean alone",
    )

    def signals(self) -> tuple[str, ...]:
        return "layer_keys", "labels"

    def select(self, inputs: Mapping[str, Array], sizes: Sizes) -> Selection:
        from array_api_compat import device

        from vtexport.pruning.arrays import integers

        xp = check_decoder_inputs(inputs)
        hidden = visual_rows(inputs, "hidden_states", sizes)
        norms = key_norms(xp, visual_rows(inputs, "keys", sizes))
        saliency = [float(each) for each in norms.tolist()]
        labels = [int(each) for each in inputs["labels"][0, ...].tolist()]
        groups, quotas, margins = _groups(saliency, labels, sizes.keep)
        visual = xp.astype(hidden, xp.float64)
        rows: dict[int, Array] = {}
        merged = set()
        for members, quota in zip(groups, quotas, strict=True):
            ranked = sorted(members, key=lambda each: (saliency[each], each))
            for single in ranked[:quota]:
                rows[single] = hidden[single, ...]
            rest = sorted(ranked[quota:])
            middle = rest[len(rest) // 2]
            mean = xp.mean(xp.stack([visual[each, ...] for each in rest]), axis=0)
            made = mean if self.merge == "mean" else visual[middle, ...] + mean
            rows[middle] = xp.astype(made, hidden.dtype)
            merged.add(middle)
        kept = sorted(rows)
        details = {
            "saliency": norms[None, :],
            "quotas": integers(xp, [quotas], hidden),
        }
        details |= {name: xp.asarray([each], dtype=xp.float64, device=device(hidden)) for name, each in margins.items()}
        flags = xp.asarray([[each in merged for each in kept]], dtype=xp.bool, device=device(hidden))
        return Selection(
            integers(xp, [kept], hidden), xp.stack([rows[each] for each in kept])[None, ...], details, flags
        )

    def emit(self, g: Builder, inputs: Mapping[str, ir.Value], sizes: Sizes) -> dict[str, ir.Value]:
        from vtexport.pruning.ops.cluster_merge_onnx import emit_cluster_merge

        saliency = emit_key_norms(g, inputs, sizes)
        return emit_cluster_merge(g, inputs, saliency, sizes, clusters=self.clusters, mean=self.merge == "mean")


def _groups(saliency: list[float], labels: list[int], keep: int) -> tuple[list[list[int]], list[int], dict[str, float]]:
    """Tokens that share one merged token, how many of each stay single, and the least margins of what was decided."""
    infinite = float("inf")
    clusters = [[i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))]
    totals = [sum(saliency[i] for i in members) for members in clusters]
    order = sorted(range(len(clusters)), key=lambda each: (totals[each], each))
    if len(clusters) > keep:
        margin = totals[order[keep - 1]] - totals[order[keep - 2]] if keep > 1 else infinite
        together = sorted(i for each in order[keep - 1 :] for i in clusters[each])
        margins = {"keep_margin": margin, "total_margin": infinite}
        return [*(clusters[each] for each in order[: keep - 1]), together], [0] * keep, margins
    counts = [len(members) for members in clusters]
    quotas = quota(counts, totals, keep)
    margin = total_margin = infinite
    if quotas != _shares(counts, keep):
        total_margin = min((totals[b] - totals[a] for a, b in itertools.pairwise(order)), default=infinite)
    for members, count in zip(clusters, quotas, strict=True):
        ranked = sorted(saliency[i] for i in members)
        if 0 < count < len(ranked):
            margin = min(margin, ranked[count] - ranked[count - 1])
    return clusters, quotas, {"keep_margin": margin, "total_margin": total_margin}


def quota(sizes: list[int], totals: list[float], keep: int) -> list[int]:
    """Single tokens of each cluster: `keep` minus the number of clusters in all, at most size - 1 each.

    Shares are rounded half to even on the exact quotient. What is then missing goes one by one to the clusters of
    smallest total with room; what is too much is taken one by one from those of largest total. One round suffices:
    every cluster that was rounded down has room, and there are at least twice as many as tokens are missing.
    """
    shares = _shares(sizes, keep)
    difference = keep - len(sizes) - sum(shares)
    order = sorted(range(len(sizes)), key=lambda each: (totals[each], each), reverse=difference < 0)
    for each in order:
        if difference > 0 and shares[each] < sizes[each] - 1:
            shares[each] += 1
            difference -= 1
        elif difference < 0 and shares[each] > 0:
            shares[each] -= 1
            difference += 1
    return shares


def _shares(sizes: list[int], keep: int) -> list[int]:
    from vtexport.pruning.arrays import round_half_even

    singles, others = keep - len(sizes), sum(sizes) - len(sizes)
    return [round_half_even((size - 1) * singles, max(1, others)) for size in sizes]
