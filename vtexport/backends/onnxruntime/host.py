"""Buffers and the key-value cache in the host's memory: NumPy arrays, handed to graphs by pointer."""

from __future__ import annotations

from collections.abc import Mapping

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
        self._past: dict[str, Buffer] = {}  # buffers whose arrays follow the length, made once
        self._rows: list[tuple[str, np.ndarray, HostBuffer]] = []  # (a graph's output, the array, its valid rows)
        for name in names:
            array = np.empty(shape, numpy_dtype)
            valid = HostBuffer(array[:, :0])
            self._past[f"past_{name}"] = valid
            self._rows.append((f"new_{name}", array, valid))
        self.capacity = capacity
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for _, array, _ in self._rows)

    def go_on(self, length: int, capacity: int) -> None:
        """As `base.Cache.go_on`: in place where the arrays are large enough, else one after the other in new ones."""
        if not 0 <= length <= self.length:
            raise IndexError(f"{length} rows to keep in a cache that holds {self.length}")
        for number, (name, array, valid) in enumerate(self._rows):
            if capacity > self.capacity:
                larger = np.empty((1, capacity, *array.shape[2:]), array.dtype)
                larger[:, :length] = array[:, :length]
                array = larger
                self._rows[number] = (name, array, valid)
            valid.array = array[:, :length]
        self.length, self.capacity = length, max(capacity, self.capacity)

    def past(self) -> dict[str, Buffer]:
        """The valid rows, as inputs of a decoder graph."""
        return self._past

    def append(self, outputs: Mapping[str, Buffer]) -> None:
        """Adds the rows that the graph returned under `new_key_values.*`."""
        start = self.length
        end = start + outputs[self._rows[0][0]].shape[1]
        if end > self.capacity:
            raise IndexError(f"{end} rows in a cache of {self.capacity}")
        for name, array, valid in self._rows:
            array[:, start:end] = outputs[name].array  # type: ignore[attr-defined]
            valid.array = array[:, :end]
        self.length = end
