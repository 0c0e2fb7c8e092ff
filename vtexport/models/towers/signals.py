"""Signals of the feature layer's attention, from what its block projects.

Every block keeps fused attention, which gives no map: the rows that a method needs are computed again from the queries
and keys, all in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import GraphWriter
from vtexport.models.parts import Tower


@dataclass(frozen=True)
class Projected:
    """Queries and keys [cls + T, D] of one block's attention."""

    query: ir.Value
    key: ir.Value


def attention_signals(
    g: GraphWriter, spec: Tower, projected: Projected, signals: tuple[str, ...], dtype: str
) -> dict[str, ir.Value]:
    """Those of the signals that come from attention, by name, float32; `dtype` is that of what was projected.

    `cls_attention` [1, T]: attention of the CLS token to every patch, summed over heads. `received_attention` [1, T]:
    the mean attention that every patch receives from all patches, summed likewise. `keys` [1, T, heads, D / heads].
    """
    wanted = {"cls_attention", "received_attention", "keys"} & set(signals)
    if not wanted:
        return {}
    first, rows = spec.cls_rows, spec.cls_rows + spec.tokens
    with g.scope("signals"):
        key = _by_head(g, spec, projected.key, dtype)
        found = {}
        if "cls_attention" in wanted:
            attention = _attention(g, spec, _by_head(g, spec, _rows(g, projected.query, 0, 1), dtype), key)
            scores = g.op("ReduceSum", attention, g.constant(np.array([1])), keepdims=0)  # [1, 1, cls + T]
            found["cls_attention"] = g.op("Squeeze", _rows(g, scores, first, rows, 2), g.constant(np.array([1])))
        if "received_attention" in wanted:
            query = _by_head(g, spec, _rows(g, projected.query, first, rows), dtype)
            received = g.op("ReduceMean", _attention(g, spec, query, key), g.constant(np.array([2])), keepdims=0)
            scores = g.op("ReduceSum", received, g.constant(np.array([1])), keepdims=0)
            found["received_attention"] = _rows(g, scores, first, rows, 1)
        if "keys" in wanted:
            found["keys"] = _rows(g, key, first, rows, 1)
    return found


def _attention(g: GraphWriter, spec: Tower, query: ir.Value, key: ir.Value) -> ir.Value:
    """[1, heads, R, cls + T]: each row's attention, of query [1, R, heads, D] and key [1, cls + T, heads, D]."""
    query, key = g.op("Transpose", query, perm=[0, 2, 1, 3]), g.op("Transpose", key, perm=[0, 2, 3, 1])
    logits = g.op("Mul", g.op("MatMul", query, key), g.constant(np.float32(spec.head_dim**-0.5)))
    return g.op("Softmax", logits, axis=-1)


def _by_head(g: GraphWriter, spec: Tower, x: ir.Value, dtype: str) -> ir.Value:
    shape = g.constant(np.array([1, -1, spec.num_attention_heads, spec.head_dim]))
    return g.cast(g.op("Reshape", x, shape), dtype, "float32")


def _rows(g: GraphWriter, x: ir.Value, first: int, end: int, axis: int = 0) -> ir.Value:
    return g.op("Slice", x, *(g.constant(np.array([value])) for value in (first, end, axis)))
