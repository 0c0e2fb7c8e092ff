"""Seeded random cases of the ops inside the language model; see `cases`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from native_ops.calls import step_call
from native_ops.compare import Case
from native_ops.inputs import TYPES, rounded
from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.cluster_merge import ClusterMerge, ClusterMergeParameters
from vtexport.pruning.llm.key_norm_topk import KeyNormTopK
from vtexport.pruning.llm.step import LLMOp, LLMSelection, LLMSizes
from vtexport.pruning.llm.text_similarity_topk import TextSimilarityTopK

COSINE = 3e-6  # error of a cosine
RELATIVE = 4e-6  # error of a sum of exponentials or squares, relative to it
STEPS: dict[str, LLMOp] = {
    op.op_type: op for op in (ClusterMerge(), KeyNormTopK(), AttentionTopK(), TextSimilarityTopK())
}


def step_case(seed: int, rng: np.random.Generator, op_type: str, **full: Any) -> Case:
    visual = full.get("visual", int(rng.choice((1, 7, 23, 64, 100, 172))))
    keep = full.get("keep", int(rng.integers(1, visual + 1)))
    start, behind = int(rng.integers(0, 40)), int(rng.integers(1, 30))
    heads, groups = int(rng.choice((1, 2, 4, 8))), int(rng.choice((1, 4)))
    width, head_width = full.get("width", int(rng.choice((8, 40, 64)))), int(rng.choice((8, 32, 128)))
    dtype, rows = str(rng.choice(TYPES)), start + visual + behind
    dtype = full.get("dtype", dtype)
    clusters = full.get("clusters", int(rng.integers(1, visual + 1)))
    inputs = {
        "hidden_states": rounded(rng.standard_normal((rows, width)), dtype),
        "keys": rounded(rng.standard_normal((rows, heads, head_width)) + 0.5 * rng.standard_normal(head_width), dtype),
        "query": rounded(rng.standard_normal((heads * groups, head_width)), dtype),
        "labels": rng.integers(-1, clusters, visual),
    }
    merging = None
    if op_type == "VtxClusterMerge":
        merging = ClusterMergeParameters(clusters=clusters, merge=str(rng.choice(("sum", "mean"))))
    op = STEPS[op_type]
    sizes = LLMSizes(visual, keep, width, heads * groups, heads, head_width)
    signals: Mapping[str, np.ndarray] = {name: inputs[name] for name in op.signals}
    found = op.select(inputs["hidden_states"], start, signals, sizes=sizes, parameters=merging)
    call = step_call(op_type, inputs, start=start, visual=visual, keep=keep, dtype=dtype, merging=merging)
    kept = start + np.asarray(found.kept)
    out_rows = np.concatenate([np.arange(start), kept, np.arange(start + visual, rows)])
    expected: dict[str, np.ndarray] = {"out_rows": out_rows}
    if merging is None:
        sure, parts = _top_is_sure(op_type, found, keep)
        if op_type != "VtxTextSimilarityTopK":
            sign = -1.0 if op_type == "VtxKeyNormTopK" else 1.0
            expected["saliency"] = sign * found.details["scores"]
    else:
        saliency, parts = found.details["saliency"], {}
        sure = np.array([found.details["keep_margin"] > 2 * RELATIVE * saliency.max() * _summed(found, keep)
                         and found.details["total_margin"] > 2 * RELATIVE * saliency.sum()])  # fmt: skip
        hidden = inputs["hidden_states"][out_rows]
        hidden[start : start + keep] = found.rows
        expected |= {"hidden_states_out": hidden, "saliency": saliency, "quotas": np.zeros(clusters + 1, np.int64)}
        if len(np.unique(inputs["labels"])) <= keep:
            expected["quotas"][np.unique(inputs["labels"]) + 1] = found.details["quotas"]
    name = f"{op_type} {seed} {rows} rows, {visual} visual at {start}, keep {keep}, {heads}x{groups} heads {dtype}"
    return Case(name, call, expected, sure, parts, merged=found.merged)


def _summed(found: LLMSelection, keep: int) -> int:
    """How many lengths are added up in what was compared: all of a cluster where there are more clusters than rows."""
    return (
        1 if len(found.details["quotas"]) <= keep and found.details["quotas"].any() else len(found.details["saliency"])
    )


def _top_is_sure(op_type: str, found: LLMSelection, keep: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which visual tokens are clearly in or out, by their distance from the cut."""
    scores = np.asarray(found.details["scores"])
    error = COSINE if op_type == "VtxTextSimilarityTopK" else RELATIVE * np.abs(scores).max()
    ranked = np.sort(scores)[::-1]
    low, high = ranked[keep - 1], ranked[keep] if keep < len(scores) else -np.inf
    clear = (scores > high + 2 * error) | (scores < low - 2 * error)
    return np.array([bool(clear.all())]), {"kept": clear}
