"""The ONNX model of a native call: the same op with the same parameters and sizes."""

from __future__ import annotations

from typing import Any

import onnx
from native_ops.calls import Call, first_op
from native_ops.cases import RANDOM_KINDS, STEPS

from vtexport.pruning import Sizes, op_model
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.op import DecoderOp

METHODS = {first_op(name, keep=64, grid=(24, 24)).op.op_type: name for name in RANDOM_KINDS if name not in STEPS}


def model_of(call: Call) -> onnx.ModelProto:
    """A one-node model with the function body, for features of the call's type."""
    if not call.is_step:
        return op_model(METHODS[call.op_type], **request(call), dtype=call.dtype)
    op, sizes = step_of(call)
    return model_of_op(op, sizes, dtype=call.dtype)


def request(call: Call) -> dict[str, Any]:
    """Sizes and options of an op behind the vision tower, as `op_model` takes them."""
    sizes = call.sizes
    asked: dict[str, Any] = {"grid": (sizes.grid_rows, sizes.grid_columns), "width": sizes.width}
    asked |= {"tokens": sizes.grid_rows * sizes.grid_columns, "keep": sizes.keep, "batch": sizes.batch}
    asked |= {"heads": sizes.heads or None, "head_dim": sizes.head_dim or None}
    asked |= {"embedding_width": sizes.embedding_width or None}
    return asked | options(call)


def step_of(call: Call) -> tuple[DecoderOp, Sizes]:
    """The op inside the language model with its settings, and its sizes."""
    settings: dict[str, Any] = {}
    if call.op_type == "VtxClusterMerge":
        settings = {"clusters": call.parameter("clusters"), "merge": "mean" if call.parameter("mean") else "sum"}
    own = call.sizes
    sizes = Sizes(
        batch=1,
        grid=(1, own.visual_count),
        width=own.width,
        keep=own.keep,
        heads=own.query_heads or 1,
        kv_heads=own.key_heads or 1,
        head_dim=own.head_dim or 1,
    )
    return STEPS[call.op_type](**settings), sizes


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
