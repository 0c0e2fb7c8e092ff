"""Values of the C structures of plugins/include for a call, and the numbers of vtx_ops.h.

The structures themselves are generated (`op_structures`). tests/plugins compares names, order and offsets with what a C
compiler makes of the headers.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any

from vtexport.dtypes import DTYPES
from vtexport.plugins.op_structures import OPS, NativeSizes, NativeStepSizes


class Status(enum.IntEnum):
    """Status that a call returns."""

    OK = 0
    BAD_SIZE = 1
    BAD_PARAMETER = 2
    NULL_POINTER = 3
    MISALIGNED = 4
    SMALL_WORKSPACE = 5
    DEVICE_ERROR = 6
    NO_MEMORY = 7


def parameters_of(op_type: str, resolved: Any) -> ctypes.Structure | None:
    """The C structure of an op's parameters, None for an op without any.

    Args:
        op_type: Such as "VtxPruneSID".
        resolved: The op with its settings (`vtexport.pruning.op.Op`), or any object with the same attributes. It is not
            looked at for ops without parameters.
    """
    op = OPS[op_type]
    if op.parameters is None:
        return None
    read = [each for each in op.attributes if each.member is not None]
    return op.parameters(*(each.number_of(getattr(resolved, each.name)) for each in read))


def make_sizes(
    *,
    grid: tuple[int, int],
    width: int,
    keep: int,
    batch: int = 1,
    heads: int = 0,
    head_dim: int = 0,
    embedding_width: int = 0,
    text_tokens: int = 0,
    dtype: str = "float32",
) -> NativeSizes:
    """NativeSizes of an op behind the vision tower; those that it does not have stay out."""
    further = heads, head_dim, embedding_width, text_tokens
    return NativeSizes(batch, *grid, width, keep, *further, DTYPES[dtype].native)


def make_step_sizes(
    *,
    rows: int,
    width: int,
    visual_count: int,
    keep: int,
    key_heads: int = 0,
    head_dim: int = 0,
    query_heads: int = 0,
    dtype: str = "float32",
) -> NativeStepSizes:
    """NativeSizes of an op inside the language model; those that it does not have stay out."""
    return NativeStepSizes(rows, width, visual_count, keep, key_heads, head_dim, query_heads, DTYPES[dtype].native)
