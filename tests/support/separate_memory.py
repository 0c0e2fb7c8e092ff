"""A backend whose buffers lie in a memory of their own: what a backend on a device is held to.

The memory is a store of bytes by number. Nothing of it can be had as an array but by `Buffer.numpy`, which `guarded`
makes fail, and by `Backend.read`, for logits. ONNX Runtime computes inside, on copies.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vtexport.backends.base import Buffer, Provides
from vtexport.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeSession
from vtexport.backends.onnxruntime.host import HostBuffer
from vtexport.dtypes import DTYPES


class Memory:
    """Bytes by number, with what was copied out of it."""

    def __init__(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._numbers = itertools.count(1)
        self.guarded = False
        self.downloads = 0
        self.reads = 0

    def put(self, array: np.ndarray) -> SeparateBuffer:
        """A copy of the array's values."""
        number = next(self._numbers)
        self._bytes[number] = np.ascontiguousarray(array).tobytes()
        return SeparateBuffer(self, number, array.shape, array.dtype.name)

    def get(self, buffer: Buffer) -> np.ndarray:
        """A copy of the buffer's values; a buffer of another memory is an error."""
        assert isinstance(buffer, SeparateBuffer), f"{type(buffer).__name__} is not in this memory"
        assert buffer.memory is self, "a buffer of another memory"
        flat = np.frombuffer(self._bytes[buffer.number], DTYPES[buffer.dtype].numpy)
        return flat.reshape(buffer.shape).copy()


class SeparateBuffer:
    """A number of the memory, with shape and type."""

    def __init__(self, memory: Memory, number: int, shape: tuple[int, ...], dtype: str):
        self.memory, self.number, self.shape, self.dtype = memory, number, shape, dtype

    def numpy(self) -> np.ndarray:
        assert not self.memory.guarded, "values left the device inside the token loop"
        self.memory.downloads += 1
        return self.memory.get(self)


class SeparateSession:
    """ONNX Runtime's session on copies."""

    def __init__(self, session: OnnxRuntimeSession, memory: Memory):
        self._session, self._memory = session, memory
        self.path, self.check_input, self.close = session.path, session.check_input, session.close
        self.input_names, self.output_names = session.input_names, session.output_names

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        given: dict[str, Buffer] = {name: HostBuffer(self._memory.get(feeds[name])) for name in self.input_names}
        return {name: self._memory.put(value.numpy()) for name, value in self._session.run(given).items()}


class SeparateCache:
    """Rows in the memory, joined anew by every `append`."""

    def __init__(self, memory: Memory, layers: range, capacity: int, empty: np.ndarray):
        names = [f"key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
        self._memory, self.capacity, self.length = memory, capacity, 0
        self._rows: dict[str, Buffer] = {name: memory.put(empty) for name in names}

    def past(self) -> dict[str, Buffer]:
        return {f"past_{name}": rows for name, rows in self._rows.items()}

    def go_on(self, length: int, capacity: int) -> None:
        if not 0 <= length <= self.length:
            raise IndexError(f"{length} rows to keep in a cache that holds {self.length}")
        for name, rows in self._rows.items():
            self._rows[name] = self._memory.put(self._memory.get(rows)[:, :length])
        self.length, self.capacity = length, max(capacity, self.capacity)

    def append(self, outputs: Mapping[str, Buffer]) -> None:
        for name, rows in self._rows.items():
            both = [self._memory.get(rows), self._memory.get(outputs[f"new_{name}"])]
            self._rows[name] = self._memory.put(np.concatenate(both, axis=1))
            self.length = self._rows[name].shape[1]
        if self.length > self.capacity:
            raise IndexError(f"{self.length} rows in a cache of {self.capacity}")


class SeparateBackend:
    """The backend; `provides` and the graphs are ONNX Runtime's."""

    def __init__(self, device: str, threads: int | None):
        self._inside, self.memory = OnnxRuntimeBackend(device, threads), Memory()
        self.provides: Provides = self._inside.provides
        self.close = self._inside.close

    def load(self, graph: Path, *, plugins: bool = False) -> SeparateSession:
        return SeparateSession(self._inside.load(graph, plugins=plugins), self.memory)

    def upload(self, array: np.ndarray) -> SeparateBuffer:
        return self.memory.put(array)

    def adopt(self, buffer: Buffer) -> Buffer:
        own = isinstance(buffer, SeparateBuffer) and buffer.memory is self.memory
        return buffer if own else self.memory.put(buffer.numpy())

    def join(self, buffers: Sequence[Buffer]) -> SeparateBuffer:
        return self.memory.put(np.concatenate([self.memory.get(buffer) for buffer in buffers], axis=1))

    def first_rows(self, buffer: Buffer, count: int) -> SeparateBuffer:
        return self.memory.put(self.memory.get(buffer)[:, :count])

    def is_finite(self, buffer: Buffer) -> bool:
        return bool(np.isfinite(self.memory.get(buffer)).all())

    def read(self, logits: Buffer) -> np.ndarray:
        self.memory.reads += 1
        return self.memory.get(logits)[0, 0].astype(np.float32)

    def cache(self, layers: range, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str) -> SeparateCache:
        empty = np.empty((1, 0, num_key_value_heads, head_dim), DTYPES[dtype].numpy)
        return SeparateCache(self.memory, layers, capacity, empty)

    def sync(self) -> None:
        pass


@contextlib.contextmanager
def guarded(memory: Memory) -> Iterator[None]:
    """Inside it no buffer gives its values to the host."""
    memory.guarded = True
    try:
        yield
    finally:
        memory.guarded = False
