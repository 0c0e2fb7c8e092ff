"""Seeded random cases of the ops inside the language model; see `cases`."""

from __future__ import annotations

from typing import Any

import numpy as np

from native_ops.calls import step_call
from native_ops.compare import Case
from native_ops.inputs import TYPES, rounded
from vtexport.pruning.op import DecoderOp
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.types import Sizes

COSINE = 3e-6  # error of a cosine
RELATIVE = 4e-6  # error of a sum of exponentials or squares, relative to it
STEPS: dict[str, type[DecoderOp]] = {
    op.op_type: op for op in (ClusterMerge, KeyNormTopK, AttentionTopK, TextSimilarityTopK)
}


def step_case(seed: int, rng: np.random.Generator, op_type: str, **full: Any) -> Case:
    visual = full.get("visual", int(rng.choice((1, 7, 23, 64, 100, 172))))
    keep = full.get("keep", int(rng.integers(1, visual + 1)))
    start, behind = int(rng.integers(0, 40)), int(rng.integers(1, 30))
    heads, groups = int(rng.choice((1, 2, 4, 8))), int(rng.choice((1, 4)))
    width, head_dim = full.get("width", int(rng.choice((8, 40, 64)))), int(rng.choice((8, 32, 128)))
    dtype, rows = str(rng.choice(TYPES)), start + visual + behind
    dtype = full.get("dtype", dtype)
    clusters = full.get("clusters", int(rng.integers(1, visual + 1)))
    inputs = {
        "hidden_states": rounded(rng.standard_normal((rows, width)), dtype),
        "keys": rounded(rng.standard_normal((rows, heads, head_dim)) + 0.5 * rng.standard_normal(head_dim), dtype),
        "query": rounded(rng.standard_normal((heads * groups, head_dim)), dtype),
        "labels": rng.integers(-1, clusters, visual),
    }
    settings = {}
    if op_type == "VtxClusterMerge":
        settings = {"clusters": clusters, "merge": str(rng.choice(("sum", "mean")))}
    op = STEPS[op_type](**settings)
    sizes = Sizes(1, (1, visual), width, keep, heads=heads * groups, kv_heads=heads, head_dim=head_dim)
    read = {name: each[None] for name, each in inputs.items()} | {"visual_start": np.array([start])}
    found = op.select({each.name: read[each.name] for each in op.inputs()}, sizes)
    details = {name: np.asarray(each)[0] for name, each in found.details.items()}
    call = step_call(op, inputs, start=start, visual=visual, keep=keep, dtype=dtype)
    kept = start + np.asarray(found.keep_indices[0])
    out_rows = np.concatenate([np.arange(start), kept, np.arange(start + visual, rows)])
    expected: dict[str, np.ndarray] = {"out_rows": out_rows}
    if found.merged is None:
        sure, parts = _top_is_sure(op_type, details["scores"], keep)
        if op_type != "VtxTextSimilarityTopK":
            sign = -1.0 if op_type == "VtxKeyNormTopK" else 1.0
            expected["saliency"] = sign * details["scores"]
    else:
        saliency, parts = details["saliency"], {}
        sure = np.array([details["keep_margin"] > 2 * RELATIVE * saliency.max() * _summed(details, keep)
                         and details["total_margin"] > 2 * RELATIVE * saliency.sum()])  # fmt: skip
        hidden = inputs["hidden_states"][out_rows]
        hidden[start : start + keep] = found.kept_features[0]
        expected |= {"hidden_states_out": hidden, "saliency": saliency, "quotas": np.zeros(clusters + 1, np.int64)}
        if len(np.unique(inputs["labels"])) <= keep:
            expected["quotas"][np.unique(inputs["labels"]) + 1] = details["quotas"]
    name = f"{op_type} {seed} {rows} rows, {visual} visual at {start}, keep {keep}, {heads}x{groups} heads {dtype}"
    merged = None if found.merged is None else found.merged[0]
    return Case(name, call, expected, sure, parts, merged=merged)


def _summed(details: dict[str, np.ndarray], keep: int) -> int:
    """The number of lengths added up in what was compared: all of a cluster where there are more clusters than rows."""
    return 1 if len(details["quotas"]) <= keep and details["quotas"].any() else len(details["saliency"])


def _top_is_sure(op_type: str, scores: np.ndarray, keep: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Visual tokens that are clearly in or out, by their distance from the cut."""
    error = COSINE if op_type == "VtxTextSimilarityTopK" else RELATIVE * np.abs(scores).max()
    ranked = np.sort(scores)[::-1]
    low, high = ranked[keep - 1], ranked[keep] if keep < len(scores) else -np.inf
    clear = (scores > high + 2 * error) | (scores < low - 2 * error)
    return np.array([bool(clear.all())]), {"kept": clear}
