"""The ops' C structures (plugins/include/vtx_structures.h) for ctypes, and what their nodes have.

Generated from plugins/schema/ops.toml by plugins/schema/generate.py. Not to be edited.
"""

# fmt: off
from __future__ import annotations

import ctypes

from vtexport.plugins.op_table import Attribute, Axis, NativeOp, NativeTensor

ABI_VERSION = 1

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class NativeSizes(ctypes.Structure):
    """`vtx_sizes`."""

    _fields_ = [
        ("batch", _int), ("grid_rows", _int), ("grid_columns", _int), ("width", _int), ("keep", _int), ("heads", _int),
        ("head_dim", _int), ("embedding_width", _int), ("text_tokens", _int), ("dtype", _int),
    ]


class NativeTensors(ctypes.Structure):
    """`vtx_tensors`."""

    _fields_ = [
        ("features", _pointer), ("scores", _pointer), ("keys", _pointer), ("similarity_features", _pointer),
        ("text_embeds", _pointer), ("image_embeds", _pointer), ("kept_features", _pointer), ("keep_indices", _pointer),
        ("merged", _pointer), ("labels", _pointer), ("rank", _pointer), ("energy", _pointer), ("count", _pointer),
        ("leverage", _pointer), ("groups", _pointer), ("sizes", _pointer), ("survivors", _pointer), ("taken", _pointer),
        ("rho", _pointer), ("tau", _pointer), ("residual", _pointer), ("leverages", _pointer), ("centers", _pointer),
        ("density", _pointer), ("delta", _pointer), ("parent", _pointer), ("pillar_threshold", _pointer),
        ("order", _pointer), ("relevance", _pointer),
    ]


class NativeStepSizes(ctypes.Structure):
    """`vtx_step_sizes`."""

    _fields_ = [
        ("rows", _int), ("width", _int), ("visual_count", _int), ("keep", _int), ("key_heads", _int),
        ("head_dim", _int), ("query_heads", _int), ("dtype", _int),
    ]


class NativeStepTensors(ctypes.Structure):
    """`vtx_step_tensors`."""

    _fields_ = [
        ("hidden_states", _pointer), ("visual_start", _pointer), ("keys", _pointer), ("query", _pointer),
        ("labels", _pointer), ("hidden_states_out", _pointer), ("out_rows", _pointer), ("saliency", _pointer),
        ("quotas", _pointer),
    ]


class PruneSIDParameters(ctypes.Structure):
    """`vtx_prunesid`."""

    _fields_ = [
        ("groups", _int), ("threshold_scale", _float), ("center", _int), ("nms_score", _int), ("order", _int),
        ("cls_slot", _int), ("redundancy", _int), ("shares", _int),
    ]


class SVDPruneParameters(ctypes.Structure):
    """`vtx_svdprune`."""

    _fields_ = [
        ("energy", _float), ("rank", _int), ("rank_bound", _int), ("center", _int), ("mode", _int),
        ("leverage", _float),
    ]


class ViTCoPParameters(ctypes.Structure):
    """`vtx_vitcop`."""

    _fields_ = [
        ("clusters", _int), ("clustering", _int), ("cluster_count", _int), ("cutoff", _float), ("radius", _float),
        ("counts_itself", _int),
    ]


class NuwaParameters(ctypes.Structure):
    """`vtx_nuwa`."""

    _fields_ = [
        ("top_n", _int), ("distance", _float), ("pillar_quantile", _float), ("paper", _int),
    ]


class CDPrunerParameters(ctypes.Structure):
    """`vtx_cdpruner`."""

    _fields_ = [
        ("relevance_of", _int), ("negate", _int), ("theta", _float),
    ]


class ClusterMergeParameters(ctypes.Structure):
    """`vtx_cluster_merge`."""

    _fields_ = [
        ("clusters", _int), ("mean", _int),
    ]


_ENCODER_AXES = {
    "B": Axis(size="batch"), "R": Axis(), "T": Axis(), "D": Axis(size="width"), "N": Axis(size="keep"),
    "H": Axis(size="heads"), "K": Axis(size="head_dim"), "M": Axis(size="text_tokens"),
    "E": Axis(size="embedding_width"), "G": Axis(parameter="groups"), "C": Axis(parameter="cluster_count"),
}

_LLM_AXES = {
    "1": Axis(), "S": Axis(size="rows"), "U": Axis(), "W": Axis(size="width"), "V": Axis(size="visual_count"),
    "N": Axis(size="keep"), "G": Axis(size="key_heads"), "H": Axis(size="query_heads"), "K": Axis(size="head_dim"),
    "C": Axis(parameter="clusters", plus=1),
}

OPS = {
    "VtxPruneSID": NativeOp(
        "prunesid", "VtxPruneSID", PruneSIDParameters,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"),
            Attribute("variant", "word", is_read=False, words={"official": None, "paper": None, "qwen": None}),
            Attribute("groups", "integer", "groups"), Attribute("threshold_scale", "number", "threshold_scale"),
            Attribute("center", "word", "center", words={"token": 0, "feature": 1}),
            Attribute("nms_score", "word", "nms_score", words={"cls_attention": 0, "abs_v": 1}),
            Attribute("order", "word", "order", words={"group": 0, "raster": 1}),
            Attribute("cls_slot", "flag", "cls_slot"),
            Attribute("redundancy", "word", "redundancy", words={"pairs": 0, "triangle": 1}),
            Attribute("shares", "word", "shares", words={"bounded": 0, "proportional": 1}),
            Attribute("space", "word", is_read=False, words={"vision": None, "projected": None}),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"),
            NativeTensor("scores", "float32", "BT", "scores", when={"nms_score": ("cls_attention",)}),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            NativeTensor("groups", "int64", "BT", "groups"), NativeTensor("sizes", "int64", "BG", "sizes"),
            NativeTensor("survivors", "int64", "BG", "survivors"), NativeTensor("taken", "int64", "BG", "taken"),
            NativeTensor("rho", "float32", "B", "rho"), NativeTensor("tau", "float32", "B", "tau"),
            NativeTensor("residual", "float32", "B", "residual"),
        ),
    ),
    "VtxSVDPrune": NativeOp(
        "svdprune", "VtxSVDPrune", SVDPruneParameters,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"), Attribute("energy", "number", "energy"), Attribute("rank", "integer", "rank"),
            Attribute("rank_bound", "integer", "rank_bound"),
            Attribute("center", "word", "center", words={"none": 2, "feature-mean": 1}),
            Attribute("space", "word", is_read=False, words={"vision": None, "projected": None}),
            Attribute("mode", "word", "mode", words={"budget": 0, "leverage": 1}),
            Attribute("leverage", "number", "leverage"),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"), NativeTensor("rank", "int64", "B", "rank"),
            NativeTensor("energy", "float32", "B", "energy"),
            NativeTensor("count", "int64", "B", "count", when={"mode": ("leverage",)}),
            NativeTensor("leverage", "float32", "B", "leverage", when={"mode": ("leverage",)}),
        ),
        diagnostics=(
            NativeTensor("leverages", "float32", "BT", "leverages"),
            NativeTensor("residual", "float32", "B", "residual"),
        ),
    ),
    "VtxViTCoP": NativeOp(
        "vitcop", "VtxViTCoP", ViTCoPParameters,
        is_step=False, needs_grid=True,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"), Attribute("grid_rows", "integer"), Attribute("grid_columns", "integer"),
            Attribute("stages", "word", is_read=False, words={"all": None, "1": None}),
            Attribute("clusters", "flag", "clusters"),
            Attribute("clustering", "word", "clustering", words={"official": 0, "fixed": 1}),
            Attribute("cluster_share", "number", is_read=False), Attribute("cluster_count", "integer", "cluster_count"),
            Attribute("cutoff", "number", "cutoff"), Attribute("radius", "number", "radius"),
            Attribute("merge", "word", is_read=False, words={"sum": None, "mean": None}),
            Attribute("deep_positions", "word", is_read=False, words={"official": None, "original": None}),
            Attribute("variant", "word", "counts_itself", words={"official": 1, "paper": 0}),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"), NativeTensor("scores", "float32", "BT", "scores"),
            NativeTensor("keys", "float32", "BTHK", "keys", when={"clusters": (1,)}),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"),
            NativeTensor("labels", "int64", "BN", "labels", when={"clusters": (1,)}),
        ),
        diagnostics=(
            NativeTensor("centers", "int64", "BC", "centers", when={"clusters": (1,)}),
            NativeTensor("density", "float32", "BN", "density", when={"clusters": (1,)}),
            NativeTensor("delta", "float32", "BN", "delta", when={"clusters": (1,)}),
            NativeTensor("parent", "int64", "BN", "parent", when={"clusters": (1,)}),
        ),
    ),
    "VtxNuwa": NativeOp(
        "nuwa", "VtxNuwa", NuwaParameters,
        is_step=False, needs_grid=True,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"), Attribute("grid_rows", "integer"), Attribute("grid_columns", "integer"),
            Attribute("stages", "word", is_read=False, words={"all": None, "1": None}),
            Attribute("top_n", "integer", "top_n"), Attribute("distance", "number", "distance"),
            Attribute("pillar_quantile", "number", "pillar_quantile"),
            Attribute("variant", "word", "paper", words={"official": 0, "paper": 1}),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"), NativeTensor("scores", "float32", "BT", "scores"),
            NativeTensor("keys", "float32", "BTHK", "keys", when={"variant": ("paper",)}),
            NativeTensor("similarity_features", "float32", "BTD", "similarity_features"),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"), NativeTensor("merged", "bool", "BN", "merged"),
        ),
        diagnostics=(
            NativeTensor("pillar_threshold", "float32", "B", "pillar_threshold"),
        ),
    ),
    "VtxDivPrune": NativeOp(
        "divprune", "VtxDivPrune", None,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"),
            Attribute("space", "word", is_read=False, words={"projected": None, "vision": None}),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            NativeTensor("order", "int64", "BN", "order"),
        ),
    ),
    "VtxCDPruner": NativeOp(
        "cdpruner", "VtxCDPruner", CDPrunerParameters,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"),
            Attribute("relevance", "word", "relevance_of", words={"llm": 0, "clip": 1, "none": 2}),
            Attribute("negate", "flag", "negate"), Attribute("theta", "number", "theta"),
        ),
        inputs=(
            NativeTensor("features", "features", "BRD", "features"),
            NativeTensor("text_embeds", "float32", "BMD", "text_embeds", when={"relevance": ("llm",)}),
            NativeTensor("image_embeds", "float32", "BTE", "image_embeds", when={"relevance": ("clip",)}),
            NativeTensor("text_embeds", "float32", "BME", "text_embeds", when={"relevance": ("clip",)}),
        ),
        outputs=(
            NativeTensor("kept_features", "features", "BND", "kept_features"),
            NativeTensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            NativeTensor("order", "int64", "BN", "order"), NativeTensor("relevance", "float32", "BT", "relevance"),
        ),
    ),
    "VtxClusterMerge": NativeOp(
        "cluster_merge", "VtxClusterMerge", ClusterMergeParameters,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
            Attribute("clusters", "integer", "clusters"),
            Attribute("merge", "word", "mean", words={"sum": 0, "mean": 1}),
        ),
        inputs=(
            NativeTensor("hidden_states", "features", "1SW", "hidden_states"),
            NativeTensor("visual_start", "int64", "1", "visual_start"),
            NativeTensor("keys", "features", "1SGK", "keys"), NativeTensor("labels", "int64", "1V", "labels"),
        ),
        outputs=(
            NativeTensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            NativeTensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            NativeTensor("saliency", "float32", "1V", "saliency"), NativeTensor("quotas", "int64", "1C", "quotas"),
        ),
    ),
    "VtxKeyNormTopK": NativeOp(
        "key_norm_topk", "VtxKeyNormTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            NativeTensor("hidden_states", "features", "1SW", "hidden_states"),
            NativeTensor("visual_start", "int64", "1", "visual_start"),
            NativeTensor("keys", "features", "1SGK", "keys"),
        ),
        outputs=(
            NativeTensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            NativeTensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            NativeTensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
    "VtxAttentionTopK": NativeOp(
        "attention_topk", "VtxAttentionTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            NativeTensor("hidden_states", "features", "1SW", "hidden_states"),
            NativeTensor("visual_start", "int64", "1", "visual_start"),
            NativeTensor("keys", "features", "1SGK", "keys"), NativeTensor("query", "features", "1HK", "query"),
        ),
        outputs=(
            NativeTensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            NativeTensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            NativeTensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
    "VtxTextSimilarityTopK": NativeOp(
        "text_similarity_topk", "VtxTextSimilarityTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            NativeTensor("hidden_states", "features", "1SW", "hidden_states"),
            NativeTensor("visual_start", "int64", "1", "visual_start"),
        ),
        outputs=(
            NativeTensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            NativeTensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            NativeTensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
}
