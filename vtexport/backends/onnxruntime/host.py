"""Buffers and the key-value cache in the host's memory: NumPy arrays, handed to graphs by pointer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from vtexport.backends.base import Buffer
from vtexport.dtypes import DTYPES


class HostBuffer:
    """An array as a buffer, without a copy."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """NumPy's name of it."""
        return self.array.dtype.name

    def numpy(self) -> np.ndarray:
        """The array itself."""
        return self.array


class HostCache:
    """Keys and values of a run of layers, token-major [1, capacity, H_kv, D], one array each.

    The first `length` rows are valid. A slice of the first rows of a token-major array is contiguous, so a graph reads
    them where they lie; the rows it returns are written after them.
    """

    def __init__(self, layers: range, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str):
        shape, numpy_dtype = (1, capacity, num_key_value_heads, head_dim), DTYPES[dtype].numpy
        names = [f"key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
        # (a graph's input, its output, the array)
        self._arrays = [(f"past_{name}", f"new_{name}", np.empty(shape, numpy_dtype)) for name in names]
        self.capacity = capacity
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for _, _, array in self._arrays)

    def past(self) -> dict[str, Buffer]:
        """The valid rows, as inputs of a decoder graph."""
        length = self.length
        return {past: HostBuffer(array[:, :length]) for past, _, array in self._arrays}

    def append(self, outputs: Mapping[str, Buffer]) -> None:
        """Adds the rows that the graph returned under `new_key_values.*`."""
        end = self.length
        for _, new, array in self._arrays:
            rows = cast(HostBuffer, outputs[new]).array
            end = self.length + rows.shape[1]
            if end > self.capacity:
                raise IndexError(f"{end} rows in a cache of {self.capacity}")
            array[:, self.length : end] = rows
        self.length = end
