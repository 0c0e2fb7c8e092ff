"""The ONNX model of a native call: the same op with the same parameters and sizes."""

from __future__ import annotations

from typing import Any

import onnx
from native_ops.calls import Call
from native_ops.cases import RANDOM_KINDS, STEPS

from vtexport.pruning import get_method, op_model
from vtexport.pruning.llm.cluster_merge import ClusterMergeParameters
from vtexport.pruning.llm.op import llm_op_model
from vtexport.pruning.llm.step import LLMSizes

METHODS = {get_method(name).op_type: name for name in RANDOM_KINDS if name not in STEPS}


def model_of(call: Call) -> onnx.ModelProto:
    """A one-node model with the function body, for features of the call's type."""
    sizes = call.sizes
    if not call.is_step:
        request: dict[str, Any] = {"grid": (sizes.grid_rows, sizes.grid_columns), "width": sizes.width}
        request |= {"tokens": sizes.grid_rows * sizes.grid_columns, "keep": sizes.keep, "batch": sizes.batch}
        request |= {each: getattr(sizes, each) or None for each in ("heads", "head_width", "embedding_width")}
        return op_model(METHODS[call.op_type], **request, dtype=call.dtype, **options(call))
    merging = None
    if call.op_type == "VtxClusterMerge":
        merge = "mean" if call.parameter("mean") else "sum"
        merging = ClusterMergeParameters(clusters=call.parameter("clusters"), merge=merge)
    heads = sizes.query_heads or 1, sizes.key_heads or 1, sizes.head_width or 1
    shape = LLMSizes(sizes.visual_count, sizes.keep, sizes.width, *heads)
    return llm_op_model(STEPS[call.op_type], merging, shape, dtype=call.dtype)


def options(call: Call) -> dict[str, Any]:
    """A method's parameters from the C structure."""
    p: Any = call.parameters
    pick = {"VtxPruneSID": lambda: {
                "groups": p.groups, "threshold_scale": p.threshold_scale, "center": ("token", "feature")[p.center],
                "nms_score": ("cls_attention", "abs_v")[p.nms_score], "order": ("group", "raster")[p.order],
                "cls_slot": bool(p.cls_slot), "redundancy": ("pairs", "triangle")[p.redundancy],
                "shares": ("bounded", "proportional")[p.shares]},
            "VtxSVDPrune": lambda: ({"rank": p.rank} if p.rank else {"energy": p.energy, "rank_bound": p.rank_bound})
            | {"center": ("token", "feature-mean", "none")[p.center]}
            | ({"mode": "leverage", "leverage": p.leverage} if p.mode else {}),
            "VtxViTCoP": lambda: {
                "clusters": bool(p.clusters), "clustering": ("official", "fixed")[p.clustering],
                "cluster_count": p.cluster_count, "cutoff": p.cutoff, "radius": p.radius,
                "variant": "official" if p.counts_itself else "paper"},
            "VtxNuwa": lambda: {"top_n": p.top_n, "distance": p.distance, "pillar_quantile": p.pillar_quantile,
                                "variant": "paper" if p.paper else "official"},
            "VtxCDPruner": lambda: {"relevance": ("llm", "clip", "none")[p.relevance_of], "negate": bool(p.negate),
                                    "theta": p.theta}}  # fmt: skip
    return pick[call.op_type]() if call.op_type in pick else {}
