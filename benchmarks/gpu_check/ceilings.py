"""Ceilings of this GPU, measured; and of each op the least time that its bytes and its products allow."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from native_ops.calls import Call

from gpu_check.measure import replay_us, summary


@dataclass(frozen=True)
class Floor:
    """The least that an op has to do.

    Attributes:
        bytes: Inputs that it reads and outputs that it writes, once each.
        fp32_flops: Of products that need float32.
        fp16_flops: Of products that tensor cores give exactly: of float16 features, added up in float32.
    """

    bytes: int
    fp32_flops: float = 0.0
    fp16_flops: float = 0.0

    def microseconds(self, ceilings: dict[str, Any]) -> float:
        """The longer one of moving the bytes and computing the products."""
        products = self.fp32_flops / ceilings["fp32_flops_per_s"] + self.fp16_flops / ceilings["fp16_flops_per_s"]
        return 1e6 * max(self.bytes / ceilings["copy_bytes_per_s"], products)


def measure_ceilings(
    clock: Any, *, device: str = "cuda", size: int = 8192, copy_bytes: int = 1 << 30
) -> dict[str, Any]:
    """Copy bandwidth (bytes read and written a second) and the rate of large square products, the median of 20 each."""
    import torch

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
        copy = summary(replay_us([functools.partial(torch.empty_like(source).copy_, source)], 20, clock))
        del source
        found: dict[str, Any] = {"copy_us": copy, "copy_bytes_per_s": 2 * copy_bytes / (1e-6 * copy["median"])}
        for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            a = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
            product = functools.partial(torch.mm, a, a, out=torch.empty_like(a))
            times = summary(replay_us([product], 20, clock))
            found |= {f"{name}_us": times, f"{name}_flops_per_s": 2 * size**3 / (1e-6 * times["median"])}
        return found | {"product_size": size, "copy_bytes": copy_bytes}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def floor_of(call: Call) -> Floor:
    """The bytes and products that no implementation of the op can do without, one call.

    A symmetric matrix counts once. Not counted, so that the floor lies below what is possible: the iterations of
    eigenvectors, greedy rounds that wait for each other, sorting, and every launch.
    """
    outputs = {"kept_features", "keep_indices", "merged", "labels", "hidden_states_out", "out_rows", "rank", "energy"}
    moved = sum(int(np.prod(shape)) * kind.itemsize for name, (shape, kind) in call.outputs.items() if name in outputs)
    sizes = call.sizes
    if call.is_step:
        visual = slice(0, sizes.visual_count)
        moved += moved  # rows are read and written
        if call.op_type == "VtxAttentionTopK":
            moved += call.inputs["keys"].nbytes
        elif "keys" in call.inputs:
            moved += call.inputs["keys"][visual].nbytes
        if call.op_type in ("VtxClusterMerge", "VtxTextSimilarityTopK"):
            moved += call.inputs["hidden_states"].nbytes
        return Floor(moved)
    batch, tokens, width = sizes.batch, sizes.grid_rows * sizes.grid_columns, sizes.width
    rows = batch * sizes.keep * width * call.inputs["features"].itemsize  # of the gathered features
    every = call.inputs["features"].nbytes
    gram = batch * float(tokens) ** 2 * width  # half the matrix, a product and a sum each
    exact = call.dtype != "float32"
    scores = call.inputs["scores"].nbytes if "scores" in call.inputs else 0
    if call.op_type == "VtxPruneSID":
        # The sigmoids' Gram matrix; cosines only inside groups, which hold T / K tokens each at best.
        inside = gram / call.parameter("groups")
        return Floor(moved + every + scores, gram + inside * (not exact), inside * exact)
    if call.op_type == "VtxSVDPrune":
        raw = exact and call.parameter("center") == 2
        return Floor(moved + every, gram * (not raw), gram * raw)
    if call.op_type == "VtxViTCoP":
        keys = sizes.heads * sizes.head_dim
        clusters = call.parameter("clusters")
        read = batch * sizes.keep * keys * 4 if clusters else 0
        return Floor(moved + rows + scores + read, batch * float(sizes.keep) ** 2 * keys if clusters else 0.0)
    if call.op_type == "VtxNuwa":
        from vtexport.pruning.ops.nuwa import collectors

        gathering = batch * collectors(call.parameter("pillar_quantile"), sizes.keep)
        near = min(float(tokens), np.pi * call.parameter("distance"))  # patches within reach
        read = every + call.inputs["similarity_features"].nbytes + scores
        return Floor(moved + read, 4 * gathering * near * width)
    if call.op_type == "VtxDivPrune":
        return Floor(moved + every, gram * (not exact), gram * exact)
    text = call.inputs["text_embeds"].nbytes if "text_embeds" in call.inputs else 0
    rounds = 2.0 * batch * sizes.keep * tokens * width  # CDPruner needs the rows of the tokens that it picks
    cholesky = batch * float(sizes.keep) ** 2 * tokens
    return Floor(moved + every + text, cholesky + rounds * (not exact), rounds * exact)
