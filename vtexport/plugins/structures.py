"""The C structures of plugins/include/vtx_ops.h, field for field, and how an op's settings fill them.

tests/plugins compares names, order and offsets with what a C compiler makes of the header.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ABI_VERSION = 1


class Status(enum.IntEnum):
    """What a call returns."""

    OK = 0
    BAD_SIZE = 1
    BAD_PARAMETER = 2
    NULL_POINTER = 3
    MISALIGNED = 4
    SMALL_WORKSPACE = 5
    DEVICE_ERROR = 6
    NO_MEMORY = 7


DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}

_int, _float, _pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Sizes(ctypes.Structure):
    """`vtx_sizes`; see `make_sizes`."""

    _fields_ = [
        ("batch", _int),
        ("grid_rows", _int),
        ("grid_columns", _int),
        ("width", _int),
        ("keep", _int),
        ("heads", _int),
        ("head_width", _int),
        ("embedding_width", _int),
        ("text_tokens", _int),
        ("dtype", _int),
    ]


TENSORS = (
    *("features", "scores", "keys", "similarity_features", "text_embeds", "image_embeds"),
    *("kept_features", "keep_indices", "merged", "labels", "rank", "energy", "count", "leverage"),
    *("groups", "sizes", "survivors", "taken", "rho", "tau", "residual", "leverages"),
    *("centers", "density", "delta", "parent", "pillar_threshold", "order", "relevance"),
)


class Tensors(ctypes.Structure):
    """`vtx_tensors`: addresses, None where a tensor is not there."""

    _fields_ = [(name, _pointer) for name in TENSORS]


class PruneSID(ctypes.Structure):
    """`vtx_prunesid`."""

    _fields_ = [
        ("groups", _int),
        ("threshold_scale", _float),
        ("center", _int),
        ("nms_score", _int),
        ("order", _int),
        ("cls_slot", _int),
        ("redundancy", _int),
        ("shares", _int),
    ]


class SVDPrune(ctypes.Structure):
    """`vtx_svdprune`."""

    _fields_ = [
        ("energy", _float),
        ("rank", _int),
        ("rank_bound", _int),
        ("center", _int),
        ("mode", _int),
        ("leverage", _float),
    ]


class ViTCoP(ctypes.Structure):
    """`vtx_vitcop`."""

    _fields_ = [
        ("clusters", _int),
        ("clustering", _int),
        ("cluster_count", _int),
        ("cutoff", _float),
        ("radius", _float),
        ("counts_itself", _int),
    ]


class Nuwa(ctypes.Structure):
    """`vtx_nuwa`."""

    _fields_ = [("top_n", _int), ("distance", _float), ("pillar_quantile", _float), ("paper", _int)]


class CDPruner(ctypes.Structure):
    """`vtx_cdpruner`."""

    _fields_ = [("relevance_of", _int), ("negate", _int), ("theta", _float)]


class StepSizes(ctypes.Structure):
    """`vtx_step_sizes`; see `make_step_sizes`."""

    _fields_ = [
        ("rows", _int),
        ("width", _int),
        ("visual_count", _int),
        ("keep", _int),
        ("key_heads", _int),
        ("head_width", _int),
        ("query_heads", _int),
        ("dtype", _int),
    ]


STEP_TENSORS = (
    *("hidden_states", "visual_start", "keys", "query", "labels"),
    *("hidden_states_out", "out_rows", "saliency", "quotas"),
)


class StepTensors(ctypes.Structure):
    """`vtx_step_tensors`: addresses, None where a tensor is not there."""

    _fields_ = [(name, _pointer) for name in STEP_TENSORS]


class ClusterMerge(ctypes.Structure):
    """`vtx_cluster_merge`."""

    _fields_ = [("clusters", _int), ("mean", _int)]


@dataclass(frozen=True)
class Op:
    """One op of the C API.

    Attributes:
        function: Its name without the library's prefix.
        op_type: Its ONNX name.
        parameters: The structure of its parameters, None where it has none.
        is_step: Whether it acts inside the language model and takes the structures for that.
        fill: From the op's settings to the structure.
    """

    function: str
    op_type: str
    parameters: type[ctypes.Structure] | None = None
    is_step: bool = False
    fill: Callable[[Any], ctypes.Structure] | None = None


def _word(value: str, *words: str) -> int:
    """The number of an enumeration whose words are these, from 0."""
    return words.index(value)


def _prunesid(p: Any) -> PruneSID:
    return PruneSID(
        p.groups,
        p.threshold_scale,
        _word(p.center, "token", "feature"),
        _word(p.nms_score, "cls_attention", "abs_v"),
        _word(p.order, "group", "raster"),
        int(p.cls_slot),
        _word(p.redundancy, "pairs", "triangle"),
        _word(p.shares, "bounded", "proportional"),
    )


def _svdprune(p: Any) -> SVDPrune:
    center = {"none": 2, "feature-mean": 1}[p.center]
    return SVDPrune(p.energy, p.rank, p.rank_bound, center, _word(p.mode, "budget", "leverage"), p.leverage)


def _vitcop(p: Any) -> ViTCoP:
    clustering = _word(p.clustering, "official", "fixed")
    return ViTCoP(int(p.clusters), clustering, p.cluster_count, p.cutoff, p.radius, int(p.variant == "official"))


def _nuwa(p: Any) -> Nuwa:
    return Nuwa(p.top_n, p.distance, p.pillar_quantile, int(p.variant == "paper"))


def _cdpruner(p: Any) -> CDPruner:
    return CDPruner(_word(p.relevance, "llm", "clip", "none"), int(p.negate), p.theta)


def _cluster_merge(p: Any) -> ClusterMerge:
    return ClusterMerge(p.clusters, int(p.merge == "mean"))


OPS = {
    op.op_type: op
    for op in (
        Op("prunesid", "VtxPruneSID", PruneSID, fill=_prunesid),
        Op("svdprune", "VtxSVDPrune", SVDPrune, fill=_svdprune),
        Op("vitcop", "VtxViTCoP", ViTCoP, fill=_vitcop),
        Op("nuwa", "VtxNuwa", Nuwa, fill=_nuwa),
        Op("divprune", "VtxDivPrune"),
        Op("cdpruner", "VtxCDPruner", CDPruner, fill=_cdpruner),
        Op("cluster_merge", "VtxClusterMerge", ClusterMerge, is_step=True, fill=_cluster_merge),
        Op("key_norm_topk", "VtxKeyNormTopK", is_step=True),
        Op("attention_topk", "VtxAttentionTopK", is_step=True),
        Op("text_similarity_topk", "VtxTextSimilarityTopK", is_step=True),
    )
}


def parameters_of(op_type: str, resolved: Any) -> ctypes.Structure | None:
    """The C structure of an op's parameters, None for an op without any.

    Args:
        op_type: Such as "VtxPruneSID".
        resolved: The op with its settings (`vtexport.pruning.op.Op`), or any object with the same attributes. It is not
            looked at for ops without parameters.
    """
    fill = OPS[op_type].fill
    return None if fill is None else fill(resolved)


def make_sizes(
    *,
    grid: tuple[int, int],
    width: int,
    keep: int,
    batch: int = 1,
    heads: int = 0,
    head_width: int = 0,
    embedding_width: int = 0,
    text_tokens: int = 0,
    dtype: str = "float32",
) -> Sizes:
    """Sizes of an op behind the vision tower; those that it does not have stay out."""
    further = heads, head_width, embedding_width, text_tokens
    return Sizes(batch, *grid, width, keep, *further, DTYPES[dtype])


def make_step_sizes(
    *,
    rows: int,
    width: int,
    visual_count: int,
    keep: int,
    key_heads: int = 0,
    head_width: int = 0,
    query_heads: int = 0,
    dtype: str = "float32",
) -> StepSizes:
    """Sizes of an op inside the language model; those that it does not have stay out."""
    return StepSizes(rows, width, visual_count, keep, key_heads, head_width, query_heads, DTYPES[dtype])
