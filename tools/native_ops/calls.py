"""Calls of the native ops as plain data, and what runs them: a library that works on some kind of memory.

A `Call` holds one call of a function of plugins/include/vtx_ops.h by the names there: sizes, parameters, input arrays,
and the outputs with shapes and types. A `Runner` carries it out where the library's memory is: on the host (the CPU
form, and the CUDA kernels built for the CPU), or on a GPU. Needs numpy alone.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.dtypes import DTYPES
from vtexport.plugins.native import Library
from vtexport.plugins.op_structures import OPS, NativeSizes, NativeStepSizes
from vtexport.plugins.structures import Status, make_sizes, make_step_sizes, parameters_of
from vtexport.pruning.op import DecoderOp
from vtexport.pruning.registry import get_method, make_options
from vtexport.pruning.schedule import PlacedOp
from vtexport.pruning.types import ModelShape

GUARD = 256  # bytes behind every output that a call must leave alone


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        op_type: Such as "VtxPruneSID".
        sizes, parameters: The C structures.
        inputs: By their names in vtx_tensors or vtx_step_tensors. bfloat16 is held by its bits, as uint16.
        outputs: Shape and NumPy type by name, intermediate values included.
    """

    op_type: str
    sizes: Any
    parameters: ctypes.Structure | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

    @property
    def is_step(self) -> bool:
        return OPS[self.op_type].is_step

    @property
    def dtype(self) -> str:
        return next(name for name, each in DTYPES.items() if each.native == self.sizes.dtype)

    def parameter(self, name: str) -> Any:
        """A field of the parameters; 0 where the op has no such field."""
        return getattr(self.parameters, name, 0)


def output_shapes(
    op_type: str, sizes: NativeSizes | NativeStepSizes, parameters: ctypes.Structure | None
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and NumPy type of every output of an op by its name in the C structures, intermediate values included.

    bfloat16 is uint16 here; the batch of 1 inside the language model is no axis.
    """
    op = OPS[op_type]
    kinds = {name: each.numpy for name, each in DTYPES.items()} | {"bool": np.dtype(np.uint8)}
    kinds["features"] = next(each.numpy for each in DTYPES.values() if each.native == sizes.dtype)

    def length(letter: str) -> int:
        axis = op.axes[letter]
        if axis.parameter is not None:
            return int(getattr(parameters, axis.parameter)) + axis.plus
        if axis.size is not None:
            return int(getattr(sizes, axis.size))
        if isinstance(sizes, NativeStepSizes):
            return {"1": 1, "U": sizes.rows - sizes.visual_count + sizes.keep}[letter]
        return int({"T": sizes.grid_rows * sizes.grid_columns}[letter])

    return {
        each.member: (tuple(map(length, each.axes.removeprefix("1"))), kinds[each.element])
        for each in (*op.outputs, *op.diagnostics)
        if op.is_there(each, parameters)
    }


def as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to nearest, ties to even; bfloat16 as its bits in uint16."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values of `as_dtype`, exactly, as float32."""
    if dtype != "bfloat16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)


def first_op(method: str, *, keep: int, grid: tuple[int, int], **options: Any) -> PlacedOp:
    """The method's op before the language model."""
    chosen = get_method(method)
    return chosen.first_op(make_options(chosen, options), ModelShape(grid, layers=1), keep)


def encoder_call(
    method: str,
    inputs: Mapping[str, np.ndarray],
    *,
    keep: int,
    grid: tuple[int, int],
    dtype: str = "float32",
    **options: Any,
) -> Call:
    """The call of a method's op behind the vision tower, from features [B, c + T, D] and the signals it reads."""
    placed = first_op(method, keep=keep, grid=grid, **options)
    op = placed.op
    read = {each.name: np.ascontiguousarray(inputs[each.name], np.float32) for each in op.inputs()[1:]}
    further: dict[str, int] = {}
    if "keys" in read:
        further["heads"], further["head_dim"] = read["keys"].shape[2:]
    if "text_embeds" in read:
        further["text_tokens"], further["embedding_width"] = read["text_embeds"].shape[1:]
    batch, _, width = inputs["features"].shape
    sizes: NativeSizes = make_sizes(grid=grid, width=width, keep=placed.keep, batch=batch, dtype=dtype, **further)
    parameters = parameters_of(op.op_type, op)
    return Call(
        op.op_type,
        sizes,
        parameters,
        {"features": as_dtype(inputs["features"], dtype), **read},
        output_shapes(op.op_type, sizes, parameters),
    )


def step_call(
    op: DecoderOp,
    inputs: Mapping[str, np.ndarray],
    *,
    start: int,
    visual: int,
    keep: int,
    dtype: str = "float32",
) -> Call:
    """The call of an op inside the language model; `inputs` as the reference takes them, without a first axis of 1."""
    given = {**inputs, "visual_start": np.array([start], np.int64)}
    native, read, lengths = OPS[op.op_type], {}, {"visual_count": visual, "keep": keep}
    for each in native.inputs:
        value = given[each.member]
        is_feature = each.element == "features"
        read[each.member] = as_dtype(value, dtype) if is_feature else np.ascontiguousarray(value, each.element)
        for letter, length in zip(each.axes.removeprefix("1"), value.shape, strict=False):
            if (name := native.axes[letter].size) is not None:
                lengths[name] = length
    sizes: NativeStepSizes = make_step_sizes(**lengths, dtype=dtype)
    parameters = parameters_of(op.op_type, op)
    outputs = output_shapes(op.op_type, sizes, parameters)
    if op.op_type == "VtxTextSimilarityTopK":  # vtx_ops.h: saliency is of key norms and of attention
        outputs = {name: each for name, each in outputs.items() if name != "saliency"}
    return Call(op.op_type, sizes, parameters, read, outputs)


def single_images(call: Call) -> list[Call]:
    """A batch's call as one call an image, for an op after the vision tower."""
    sizes = type(call.sizes).from_buffer_copy(call.sizes)
    sizes.batch = 1
    outputs = output_shapes(call.op_type, sizes, call.parameters)
    return [
        Call(call.op_type, sizes, call.parameters, {k: v[image : image + 1] for k, v in call.inputs.items()}, outputs)
        for image in range(call.sizes.batch)
    ]


@dataclass
class Prepared:
    """A call with its memory: inputs in place, outputs poisoned. `runner.launch` may run it any number of times."""

    call: Call
    buffers: dict[str, Any]
    workspace: Any
    workspace_bytes: int
    addresses: dict[str, int | None] = field(default_factory=dict)


class Runner(ABC):
    """A library and its kind of memory. Subclasses say how memory is had, filled and read."""

    stream: int | None = None  # of the CUDA API; None is the default stream

    def __init__(self, library: Library) -> None:
        self.library = library

    @abstractmethod
    def allocate(self, count: int) -> Any:
        """A buffer of `count` bytes whose address is a multiple of 256."""

    @abstractmethod
    def address(self, buffer: Any) -> int: ...

    @abstractmethod
    def copy_in(self, buffer: Any, values: np.ndarray) -> None:
        """`values` [n] uint8 to the front of a buffer."""

    @abstractmethod
    def copy_out(self, buffer: Any, start: int = 0) -> np.ndarray:
        """A buffer's bytes from `start` on, [n] uint8, after everything enqueued has run."""

    def fill(self, buffer: Any, count: int, byte: int) -> None:
        """Sets a buffer's `count` bytes."""
        self.copy_in(buffer, np.full(count, byte, np.uint8))

    def prepare(self, call: Call, poison: int = 0xA5) -> Prepared:
        """Memory for a call; outputs, what lies behind them and the workspace are filled with the byte `poison`."""
        buffers = {}
        for name, values in call.inputs.items():
            flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            buffers[name] = self.allocate(flat.size)
            self.copy_in(buffers[name], flat)
        for name, (shape, kind) in call.outputs.items():
            count = int(np.prod(shape)) * kind.itemsize + GUARD
            buffers[name] = self.allocate(count)
            self.fill(buffers[name], count, poison)
        status, count = self.library.workspace_bytes(call.op_type, call.sizes, call.parameters)
        self._check(call, status)
        workspace = self.allocate(count + GUARD)
        self.fill(workspace, count + GUARD, poison)
        addresses = {name: self.address(buffer) for name, buffer in buffers.items()}
        return Prepared(call, buffers, workspace, count, addresses)

    def launch(self, prepared: Prepared) -> None:
        """Enqueues the call."""
        call = prepared.call
        status = self.library.call(
            call.op_type,
            call.sizes,
            call.parameters,
            prepared.addresses,
            workspace=self.address(prepared.workspace),
            workspace_bytes=prepared.workspace_bytes,
            stream=self.stream,
        )
        self._check(call, status)

    def _check(self, call: Call, status: Status) -> None:
        if status is Status.DEVICE_ERROR:
            raise RuntimeError(f"{call.op_type}: {self.library.text('last_error')}")
        if status is not Status.OK:
            raise RuntimeError(f"{call.op_type}: {self.library.status_text(status)}")

    def results(self, prepared: Prepared, poison: int = 0xA5) -> dict[str, np.ndarray]:
        """The outputs.

        Raises:
            AssertionError: The call wrote behind an output or behind its workspace, or changed an input.
        """
        found = {}
        for name, (shape, kind) in prepared.call.outputs.items():
            flat = self.copy_out(prepared.buffers[name])
            assert (flat[-GUARD:] == poison).all(), f"{prepared.call.op_type} wrote behind {name}"
            found[name] = flat[:-GUARD].view(kind).reshape(shape)
        behind = self.copy_out(prepared.workspace, prepared.workspace_bytes)
        assert (behind == poison).all(), f"{prepared.call.op_type} wrote behind its workspace"
        for name, values in prepared.call.inputs.items():
            same = self.copy_out(prepared.buffers[name]).tobytes() == np.ascontiguousarray(values).tobytes()
            assert same, f"{prepared.call.op_type} changed its input {name}"
        return found

    def run(self, call: Call, poison: int = 0xA5) -> dict[str, np.ndarray]:
        """The outputs of a call."""
        prepared = self.prepare(call, poison)
        self.launch(prepared)
        return self.results(prepared, poison)

    def run_twice(self, call: Call) -> tuple[dict[str, np.ndarray], list[str]]:
        """Outputs, and those that differ between two runs over memory that was poisoned differently.

        An element that a call does not write, a bit that changes from run to run, and a result that hangs on what the
        workspace held all show here.
        """
        first, second = self.run(call, 0xA5), self.run(call, 0x5A)
        return first, [name for name in first if first[name].tobytes() != second[name].tobytes()]


class HostRunner(Runner):
    """A library that works on host memory: the CPU form, or the CUDA kernels built for the CPU."""

    def __init__(self, path: Path, prefix: str) -> None:
        super().__init__(Library(path, prefix))

    def allocate(self, count: int) -> np.ndarray:
        memory = np.empty(count + 256, np.uint8)
        start = -memory.ctypes.data % 256
        return memory[start : start + count]

    def address(self, buffer: np.ndarray) -> int:
        return int(buffer.ctypes.data)

    def copy_in(self, buffer: np.ndarray, values: np.ndarray) -> None:
        buffer[: values.size] = values

    def copy_out(self, buffer: np.ndarray, start: int = 0) -> np.ndarray:
        return buffer[start:].copy()
