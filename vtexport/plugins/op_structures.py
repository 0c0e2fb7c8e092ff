"""The ops' C structures (plugins/include/vtx_structures.h) for ctypes, and what their nodes have.

Generated from plugins/schema/ops.toml by plugins/schema/generate.py. Not to be edited.
"""

# fmt: off
from __future__ import annotations

import ctypes

from vtexport.plugins.op_table import Attribute, Axis, Op, Tensor

ABI_VERSION = 1

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Sizes(ctypes.Structure):
    """`vtx_sizes`."""

    _fields_ = [
        ("batch", _int), ("grid_rows", _int), ("grid_columns", _int), ("width", _int), ("keep", _int), ("heads", _int),
        ("head_width", _int), ("embedding_width", _int), ("text_tokens", _int), ("dtype", _int),
    ]


class Tensors(ctypes.Structure):
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


class StepSizes(ctypes.Structure):
    """`vtx_step_sizes`."""

    _fields_ = [
        ("rows", _int), ("width", _int), ("visual_count", _int), ("keep", _int), ("key_heads", _int),
        ("head_width", _int), ("query_heads", _int), ("dtype", _int),
    ]


class StepTensors(ctypes.Structure):
    """`vtx_step_tensors`."""

    _fields_ = [
        ("hidden_states", _pointer), ("visual_start", _pointer), ("keys", _pointer), ("query", _pointer),
        ("labels", _pointer), ("hidden_states_out", _pointer), ("out_rows", _pointer), ("saliency", _pointer),
        ("quotas", _pointer),
    ]


class PruneSID(ctypes.Structure):
    """`vtx_prunesid`."""

    _fields_ = [
        ("groups", _int), ("threshold_scale", _float), ("center", _int), ("nms_score", _int), ("order", _int),
        ("cls_slot", _int), ("redundancy", _int), ("shares", _int),
    ]


class SVDPrune(ctypes.Structure):
    """`vtx_svdprune`."""

    _fields_ = [
        ("energy", _float), ("rank", _int), ("rank_bound", _int), ("center", _int), ("mode", _int),
        ("leverage", _float),
    ]


class ViTCoP(ctypes.Structure):
    """`vtx_vitcop`."""

    _fields_ = [
        ("clusters", _int), ("clustering", _int), ("cluster_count", _int), ("cutoff", _float), ("radius", _float),
        ("counts_itself", _int),
    ]


class Nuwa(ctypes.Structure):
    """`vtx_nuwa`."""

    _fields_ = [
        ("top_n", _int), ("distance", _float), ("pillar_quantile", _float), ("paper", _int),
    ]


class CDPruner(ctypes.Structure):
    """`vtx_cdpruner`."""

    _fields_ = [
        ("relevance_of", _int), ("negate", _int), ("theta", _float),
    ]


class ClusterMerge(ctypes.Structure):
    """`vtx_cluster_merge`."""

    _fields_ = [
        ("clusters", _int), ("mean", _int),
    ]


_ENCODER_AXES = {
    "B": Axis(size="batch"), "R": Axis(), "T": Axis(), "D": Axis(size="width"), "N": Axis(size="keep"),
    "H": Axis(size="heads"), "K": Axis(size="head_width"), "M": Axis(size="text_tokens"),
    "E": Axis(size="embedding_width"), "G": Axis(parameter="groups"), "C": Axis(parameter="cluster_count"),
}

_LLM_AXES = {
    "1": Axis(), "S": Axis(size="rows"), "U": Axis(), "W": Axis(size="width"), "V": Axis(size="visual_count"),
    "N": Axis(size="keep"), "G": Axis(size="key_heads"), "H": Axis(size="query_heads"), "K": Axis(size="head_width"),
    "C": Axis(parameter="clusters", plus=1),
}

OPS = {
    "VtxPruneSID": Op(
        "prunesid", "VtxPruneSID", PruneSID,
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
            Tensor("features", "features", "BRD", "features"),
            Tensor("scores", "float32", "BT", "scores", when={"nms_score": ("cls_attention",)}),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            Tensor("groups", "int64", "BT", "groups"), Tensor("sizes", "int64", "BG", "sizes"),
            Tensor("survivors", "int64", "BG", "survivors"), Tensor("taken", "int64", "BG", "taken"),
            Tensor("rho", "float32", "B", "rho"), Tensor("tau", "float32", "B", "tau"),
            Tensor("residual", "float32", "B", "residual"),
        ),
    ),
    "VtxSVDPrune": Op(
        "svdprune", "VtxSVDPrune", SVDPrune,
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
            Tensor("features", "features", "BRD", "features"),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"), Tensor("rank", "int64", "B", "rank"),
            Tensor("energy", "float32", "B", "energy"),
            Tensor("count", "int64", "B", "count", when={"mode": ("leverage",)}),
            Tensor("leverage", "float32", "B", "leverage", when={"mode": ("leverage",)}),
        ),
        diagnostics=(
            Tensor("leverages", "float32", "BT", "leverages"), Tensor("residual", "float32", "B", "residual"),
        ),
    ),
    "VtxViTCoP": Op(
        "vitcop", "VtxViTCoP", ViTCoP,
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
            Tensor("features", "features", "BRD", "features"), Tensor("scores", "float32", "BT", "scores"),
            Tensor("keys", "float32", "BTHK", "keys", when={"clusters": (1,)}),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"),
            Tensor("labels", "int64", "BN", "labels", when={"clusters": (1,)}),
        ),
        diagnostics=(
            Tensor("centers", "int64", "BC", "centers", when={"clusters": (1,)}),
            Tensor("density", "float32", "BN", "density", when={"clusters": (1,)}),
            Tensor("delta", "float32", "BN", "delta", when={"clusters": (1,)}),
            Tensor("parent", "int64", "BN", "parent", when={"clusters": (1,)}),
        ),
    ),
    "VtxNuwa": Op(
        "nuwa", "VtxNuwa", Nuwa,
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
            Tensor("features", "features", "BRD", "features"), Tensor("scores", "float32", "BT", "scores"),
            Tensor("keys", "float32", "BTHK", "keys", when={"variant": ("paper",)}),
            Tensor("similarity_features", "float32", "BTD", "similarity_features"),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"), Tensor("merged", "bool", "BN", "merged"),
        ),
        diagnostics=(
            Tensor("pillar_threshold", "float32", "B", "pillar_threshold"),
        ),
    ),
    "VtxDivPrune": Op(
        "divprune", "VtxDivPrune", None,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"),
            Attribute("space", "word", is_read=False, words={"projected": None, "vision": None}),
        ),
        inputs=(
            Tensor("features", "features", "BRD", "features"),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            Tensor("order", "int64", "BN", "order"),
        ),
    ),
    "VtxCDPruner": Op(
        "cdpruner", "VtxCDPruner", CDPruner,
        is_step=False, needs_grid=False,
        axes=_ENCODER_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("keep", "integer"),
            Attribute("relevance", "word", "relevance_of", words={"llm": 0, "clip": 1, "none": 2}),
            Attribute("negate", "flag", "negate"), Attribute("theta", "number", "theta"),
        ),
        inputs=(
            Tensor("features", "features", "BRD", "features"),
            Tensor("text_embeds", "float32", "BMD", "text_embeds", when={"relevance": ("llm",)}),
            Tensor("image_embeds", "float32", "BTE", "image_embeds", when={"relevance": ("clip",)}),
            Tensor("text_embeds", "float32", "BME", "text_embeds", when={"relevance": ("clip",)}),
        ),
        outputs=(
            Tensor("kept_features", "features", "BND", "kept_features"),
            Tensor("keep_indices", "int64", "BN", "keep_indices"),
        ),
        diagnostics=(
            Tensor("order", "int64", "BN", "order"), Tensor("relevance", "float32", "BT", "relevance"),
        ),
    ),
    "VtxClusterMerge": Op(
        "cluster_merge", "VtxClusterMerge", ClusterMerge,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
            Attribute("clusters", "integer", "clusters"),
            Attribute("merge", "word", "mean", words={"sum": 0, "mean": 1}),
        ),
        inputs=(
            Tensor("hidden_states", "features", "1SW", "hidden_states"),
            Tensor("visual_start", "int64", "1", "visual_start"), Tensor("keys", "features", "1SGK", "keys"),
            Tensor("labels", "int64", "1V", "labels"),
        ),
        outputs=(
            Tensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            Tensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            Tensor("saliency", "float32", "1V", "saliency"), Tensor("quotas", "int64", "1C", "quotas"),
        ),
    ),
    "VtxKeyNormTopK": Op(
        "key_norm_topk", "VtxKeyNormTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            Tensor("hidden_states", "features", "1SW", "hidden_states"),
            Tensor("visual_start", "int64", "1", "visual_start"), Tensor("keys", "features", "1SGK", "keys"),
        ),
        outputs=(
            Tensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            Tensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            Tensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
    "VtxAttentionTopK": Op(
        "attention_topk", "VtxAttentionTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            Tensor("hidden_states", "features", "1SW", "hidden_states"),
            Tensor("visual_start", "int64", "1", "visual_start"), Tensor("keys", "features", "1SGK", "keys"),
            Tensor("query", "features", "1HK", "query"),
        ),
        outputs=(
            Tensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            Tensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            Tensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
    "VtxTextSimilarityTopK": Op(
        "text_similarity_topk", "VtxTextSimilarityTopK", None,
        is_step=True, needs_grid=False,
        axes=_LLM_AXES,
        attributes=(
            Attribute("plugin_namespace", "word", is_read=False), Attribute("plugin_version", "word", is_read=False),
            Attribute("visual_count", "integer"), Attribute("keep", "integer"),
        ),
        inputs=(
            Tensor("hidden_states", "features", "1SW", "hidden_states"),
            Tensor("visual_start", "int64", "1", "visual_start"),
        ),
        outputs=(
            Tensor("hidden_states_out", "features", "1UW", "hidden_states_out"),
            Tensor("rows", "int64", "1U", "out_rows"),
        ),
        diagnostics=(
            Tensor("saliency", "float32", "1V", "saliency"),
        ),
    ),
}
