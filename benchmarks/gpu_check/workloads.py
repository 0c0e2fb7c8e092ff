"""What is timed: every op at the sizes of LLaVA-1.5 (576 tokens), two images (1152) and LLaVA-NeXT (2880)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from native_ops.calls import Call, encoder_call, step_call
from ops import generated_images

from vtexport.errors import UsageError
from vtexport.pruning.llm.cluster_merge import ClusterMergeParameters

GRIDS = {576: (24, 24), 1152: (24, 48), 2880: (48, 60)}
BUDGETS, BATCHES = (16, 64, 192), (1, 5)
WIDTH, HEADS, TEXT = 1024, 16, 16
RANK = 32
# Name, method, and what differs from its defaults. ViTCoP's stage I is timed with its clusters and without.
ENCODER: list[tuple[str, str, dict[str, Any]]] = [
    ("prunesid", "prunesid", {}),
    ("svdprune", "svdprune", {"rank": RANK}),
    ("vitcop", "vitcop", {}),
    ("vitcop clusters", "vitcop", {"clusters": True}),
    ("nuwa", "nuwa", {}),
    ("divprune", "divprune", {}),
    ("cdpruner", "cdpruner", {}),
]
# Ops inside the language model at LLaVA-1.5-7B's sizes and the 64-token presets: (op, n, n', clusters).
INSIDE = [
    ("VtxClusterMerge", 172, 77, 20),
    ("VtxKeyNormTopK", 77, 15, 0),
    ("VtxAttentionTopK", 576, 288, 0),
    ("VtxAttentionTopK", 112, 16, 0),
    ("VtxTextSimilarityTopK", 112, 16, 0),
]
LLM_WIDTH, LLM_HEADS, LLM_HEAD_WIDTH, LLM_START, LLM_BEHIND = 4096, 32, 128, 35, 25


@dataclass(frozen=True)
class Workload:
    """One line of the table."""

    name: str
    method: str
    tokens: int
    keep: int
    batch: int
    grid: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name} {self.tokens}->{self.keep} batch {self.batch}"


def encoder_workloads(quick: bool) -> Iterator[Workload]:
    """Every method, number of tokens, budget and batch, N = 64 first; with `quick` 576 tokens and N = 64 alone."""
    for keep in sorted(BUDGETS, key=lambda each: each != 64):
        for tokens, grid in GRIDS.items():
            for batch in BATCHES:
                for name, method, options in ENCODER:
                    if not quick or (tokens, keep) == (576, 64):
                        yield Workload(name, method, tokens, keep, batch, grid, options)


def encoder_inputs(workload: Workload) -> dict[str, np.ndarray]:
    """What the method may read, float32 but for the features."""
    made = _images(workload.tokens)
    own = {name: each[: workload.batch] for name, each in made.items()}
    if workload.method != "prunesid":
        own["features"] = own["features"][:, 1:]
    return own


@functools.lru_cache(maxsize=3)
def _images(tokens: int) -> dict[str, np.ndarray]:
    """Five images' features with CLS in the likeness of CLIP's, and signals that hang together with them."""
    features, scores = generated_images(max(BATCHES), GRIDS[tokens])
    patches, rng = features[:, 1:].astype(np.float32), np.random.default_rng(7)
    mixing = (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    mixed = patches @ mixing
    # Keys about as far apart as the distance at which ViTCoP's densities fall off; farther, all its densities are 1.
    keys = mixed * (8 / np.median(np.linalg.norm(mixed[:, 1:] - mixed[:, :-1], axis=2)))
    words = patches[:, rng.choice(tokens, TEXT, replace=False)]
    return {
        "features": features,
        "scores": scores,
        "keys": keys.reshape(len(patches), tokens, HEADS, WIDTH // HEADS),
        "similarity_features": patches + 0.3 * mixed,
        "text_embeds": words + rng.standard_normal(words.shape).astype(np.float32),
    }


def encoder_workload_call(workload: Workload) -> Call | None:
    """None where the method has no such budget."""
    assert workload.grid is not None
    try:
        call = encoder_call(
            workload.method,
            encoder_inputs(workload),
            keep=workload.keep,
            grid=workload.grid,
            dtype="float16",
            **workload.options,
        )
    except UsageError:
        return None
    needed = {"kept_features", "keep_indices", "merged", "labels", "rank", "energy"}  # no intermediate values
    return Call(call.op_type, call.sizes, call.parameters, call.inputs,
                {name: each for name, each in call.outputs.items() if name in needed})  # fmt: skip


def step_workloads() -> Iterator[tuple[Workload, Call]]:
    rng = np.random.default_rng(3)
    for op_type, visual, keep, clusters in INSIDE:
        rows = LLM_START + visual + LLM_BEHIND
        inputs = {
            "hidden_states": rng.standard_normal((rows, LLM_WIDTH), np.float32),
            "keys": rng.standard_normal((rows, LLM_HEADS, LLM_HEAD_WIDTH), np.float32),
            "query": rng.standard_normal((LLM_HEADS, LLM_HEAD_WIDTH), np.float32),
            "labels": rng.integers(0, max(1, clusters), visual),
        }
        merging = ClusterMergeParameters(clusters=clusters) if clusters else None
        call = step_call(op_type, inputs, start=LLM_START, visual=visual, keep=keep, dtype="float16", merging=merging)
        outputs = {name: call.outputs[name] for name in ("hidden_states_out", "out_rows")}
        bare = Call(call.op_type, call.sizes, call.parameters, call.inputs, outputs)
        yield Workload(op_type, op_type, visual, keep, 1), bare
