"""The key-value cache: owned by the runtime, one buffer a layer, handed to graphs by pointer."""

from __future__ import annotations

import numpy as np


class KVCache:
    """Keys and values of a run of layers, token-major [1, capacity, H_kv, D].

    The first `length` rows are valid. A slice of the first rows of a token-major buffer is contiguous, so a graph reads
    them where they lie; the rows it returns are written after them.
    """

    def __init__(self, layers: range, capacity: int, kv_heads: int, head_dim: int, dtype: np.dtype):
        shape = (1, capacity, kv_heads, head_dim)
        self._buffers = {
            f"key_values.{layer}.{kind}": np.empty(shape, dtype) for layer in layers for kind in ("key", "value")
        }
        self.capacity = capacity
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def past(self) -> dict[str, np.ndarray]:
        """The valid rows, as inputs of a decoder graph."""
        return {f"past_{name}": buffer[:, : self.length] for name, buffer in self._buffers.items()}

    def append(self, new: dict[str, np.ndarray]) -> None:
        """Adds the rows that the graph returned under `new_key_values.*`."""
        end = self.length
        for name, buffer in self._buffers.items():
            rows = new[f"new_{name}"]
            end = self.length + rows.shape[1]
            if end > self.capacity:
                raise IndexError(f"{end} rows in a cache of {self.capacity}")
            buffer[:, self.length : end] = rows
        self.length = end
