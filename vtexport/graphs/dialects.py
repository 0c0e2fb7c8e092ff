"""The two spellings of a decoder layer: with opset 23's own operators, or with those of opset 20.

`modern` (ONNX Runtime, TensorRT >= 10.15, TensorRT-RTX) has Attention, RMSNormalization and RotaryEmbedding as
operators, which runtimes map to fused kernels. `classic` (JetPack 6.2's TensorRT 10.3, JetPack 7.0's 10.13) writes the
same arithmetic with MatMul, Softmax and elementwise operators. Statistics are float32, whatever the type of the data,
except that `Attention` leaves the precision of its softmax to the runtime. Weights and interfaces are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import DTYPES, GraphWriter


class Heads(Protocol):
    """The attention heads of a decoder."""

    @property
    def num_attention_heads(self) -> int:
        """Of queries."""

    @property
    def num_key_value_heads(self) -> int:
        """Of keys and values, a divisor of those of queries."""

    @property
    def head_dim(self) -> int:
        """Width of one."""


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of rotary positions [1, S, D / 2], or [1, S, 1, D] in the classic dialect."""

    cos: ir.Value
    sin: ir.Value


class Dialect(ABC):
    """Spelling of a decoder layer's three special operations. All tensors have batch 1."""

    name: str
    opset: int
    turns_by_head: bool  # `rotate` gives [1, S, heads, D] and not [1, S, heads * D]

    @abstractmethod
    def rms_norm(self, g: GraphWriter, x: ir.Value, weight: ir.Value, epsilon: float, dtype: str) -> ir.Value:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, the statistics in float32."""

    @abstractmethod
    def frequencies(self, inv_freq: np.ndarray) -> np.ndarray:
        """The inverse frequencies [D / 2] as `rotation` takes the cosines and sines of angles with them."""

    @abstractmethod
    def rotation(self, g: GraphWriter, cos: ir.Value, sin: ir.Value) -> Rotation:
        """Prepares cosines and sines [1, S, width of `frequencies`] for `rotate`."""

    @abstractmethod
    def rotate(self, g: GraphWriter, x: ir.Value, rotation: Rotation, heads: int, head_dim: int) -> ir.Value:
        """Rotary position embedding of x [S, heads * D], first half against second half, as Llama has it.

        The result is [1, S, heads * D], or [1, S, heads, D] where the dialect `turns_by_head`.
        """

    @abstractmethod
    def split(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """Rows x [S, heads * D] in the form that `rotate` gives."""

    @abstractmethod
    def by_head(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """[1, S, heads, D] of what `rotate` or `split` gave."""

    @abstractmethod
    def with_past(self, g: GraphWriter, past: ir.Value, new: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """Rows of the cache [1, P, heads, D] and the new ones behind them, in the form of `rotate`, as is the result
        [1, P + S, ...]."""

    @abstractmethod
    def attend(
        self, g: GraphWriter, heads: Heads, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, dtype: str
    ) -> ir.Value:
        """Attention of q to k, v [1, L, ...], in the form of `rotate`, where `mask` [1, 1, S, L] is: [S, H * D]."""

    @abstractmethod
    def attend_all(
        self, g: GraphWriter, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, head_dim: int, dtype: str
    ) -> ir.Value:
        """Attention of every row to every row, as vision towers have it: q, k, v and the result [rows, heads * D]."""


class Modern(Dialect):
    """Opset 23: one operator each."""

    name = "modern"
    opset = 23
    turns_by_head = False

    def rms_norm(self, g: GraphWriter, x: ir.Value, weight: ir.Value, epsilon: float, dtype: str) -> ir.Value:
        return g.op("RMSNormalization", x, weight, epsilon=epsilon, axis=-1)  # stash_type 1: statistics in float32

    def frequencies(self, inv_freq: np.ndarray) -> np.ndarray:
        return inv_freq

    def rotation(self, g: GraphWriter, cos: ir.Value, sin: ir.Value) -> Rotation:
        return Rotation(cos, sin)

    def rotate(self, g: GraphWriter, x: ir.Value, rotation: Rotation, heads: int, head_dim: int) -> ir.Value:
        x = self.split(g, x, heads, head_dim)
        return g.op("RotaryEmbedding", x, rotation.cos, rotation.sin, num_heads=heads)

    def split(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return g.op("Unsqueeze", x, g.constant(np.array([0])))

    def by_head(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return g.op("Reshape", x, g.constant(np.array([0, 0, heads, head_dim])))

    def with_past(self, g: GraphWriter, past: ir.Value, new: ir.Value, heads: int, head_dim: int) -> ir.Value:
        # The past is reshaped and not the whole, which saves a node: a TensorRT-RTX engine would hold weights twice.
        flat = g.op("Reshape", past, g.constant(np.array([0, 0, heads * head_dim])))
        return g.op("Concat", flat, new, axis=1)

    def attend(
        self, g: GraphWriter, heads: Heads, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, dtype: str
    ) -> ir.Value:
        # Without softmax_precision, which TensorRT's parser refuses: its fused kernels choose for themselves.
        counts: dict[str, Any] = {"q_num_heads": heads.num_attention_heads, "kv_num_heads": heads.num_key_value_heads}
        return g.op("Squeeze", g.op("Attention", q, k, v, mask, **counts), g.constant(np.array([0])))

    def attend_all(
        self, g: GraphWriter, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, head_dim: int, dtype: str
    ) -> ir.Value:
        batch = g.constant(np.array([0]))
        q, k, v = (g.op("Unsqueeze", x, batch) for x in (q, k, v))
        return g.op("Squeeze", g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads), batch)


class Classic(Dialect):
    """Opset 20: decomposed."""

    name = "classic"
    opset = 20
    turns_by_head = True

    def rms_norm(self, g: GraphWriter, x: ir.Value, weight: ir.Value, epsilon: float, dtype: str) -> ir.Value:
        wide = g.cast(x, dtype, "float32")
        # Pow and not Mul, because optimisers look for the former.
        square = g.op("Pow", wide, g.constant(np.float32(2)))
        mean = g.op("ReduceMean", square, g.constant(np.array([-1])), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.constant(np.float32(epsilon))))
        return g.op("Mul", g.cast(g.op("Div", wide, root), "float32", dtype), weight)

    def frequencies(self, inv_freq: np.ndarray) -> np.ndarray:
        # The first half is turned by -sin and the second by sin; cos is the same for both signs.
        return np.concatenate([-inv_freq, inv_freq])

    def rotation(self, g: GraphWriter, cos: ir.Value, sin: ir.Value) -> Rotation:
        axis = g.constant(np.array([2]))
        cos, sin = (g.op("Unsqueeze", x, axis) for x in (cos, sin))
        return Rotation(cos, sin)

    def rotate(self, g: GraphWriter, x: ir.Value, rotation: Rotation, heads: int, head_dim: int) -> ir.Value:
        by_head = self.split(g, x, heads, head_dim)
        first, second = g.op("Split", by_head, outputs=2, axis=-1, num_outputs=2)
        exchanged = g.op("Concat", second, first, axis=-1)
        return g.op("Add", g.op("Mul", by_head, rotation.cos), g.op("Mul", exchanged, rotation.sin))

    def split(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return g.op("Reshape", x, g.constant(np.array([1, -1, heads, head_dim])))

    def by_head(self, g: GraphWriter, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return x

    def with_past(self, g: GraphWriter, past: ir.Value, new: ir.Value, heads: int, head_dim: int) -> ir.Value:
        return g.op("Concat", past, new, axis=1)

    def attend(
        self, g: GraphWriter, heads: Heads, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, dtype: str
    ) -> ir.Value:
        groups = heads.num_attention_heads // heads.num_key_value_heads
        # The query heads of one key head stand together: [1, H_kv, groups, S, D] against [1, H_kv, 1, L, D].
        q = g.op("Reshape", q, g.constant(np.array([0, -1, heads.num_key_value_heads, groups, heads.head_dim])))
        k, v = (
            g.op("Reshape", x, g.constant(np.array([0, 0, heads.num_key_value_heads, 1, heads.head_dim])))
            for x in (k, v)
        )
        q = g.op("Transpose", q, perm=[0, 2, 3, 1, 4])
        k, v = g.op("Transpose", k, perm=[0, 2, 3, 4, 1]), g.op("Transpose", v, perm=[0, 2, 3, 1, 4])
        logits = g.cast(g.op("MatMul", g.op("Mul", q, g.constant(_scale(heads.head_dim, dtype))), k), dtype, "float32")
        # The lowest finite number, not -inf: no row is ever masked whole, and some compilers turn inf - inf into NaN.
        lowest = g.constant(np.float32(np.finfo(np.float32).min))
        logits = g.op("Where", mask, logits, lowest)
        weights = g.cast(g.op("Softmax", logits, axis=-1), "float32", dtype)
        attended = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 3, 1, 2, 4])
        return g.op("Reshape", attended, g.constant(np.array([-1, heads.num_attention_heads * heads.head_dim])))

    def attend_all(
        self, g: GraphWriter, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, head_dim: int, dtype: str
    ) -> ir.Value:
        by_head = g.constant(np.array([1, -1, heads, head_dim]))
        q, k, v = (g.op("Reshape", x, by_head) for x in (q, k, v))
        q, v = (g.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
        k = g.op("Transpose", k, perm=[0, 2, 3, 1])
        logits = g.op("MatMul", g.op("Mul", q, g.constant(_scale(head_dim, dtype))), k)
        weights = g.cast(g.op("Softmax", g.cast(logits, dtype, "float32"), axis=-1), "float32", dtype)
        attended = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return g.op("Reshape", attended, g.constant(np.array([-1, heads * head_dim])))


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Modern(), Classic())}


def _scale(head_dim: int, dtype: str) -> np.ndarray:
    return np.asarray(head_dim**-0.5, DTYPES[dtype].numpy())
