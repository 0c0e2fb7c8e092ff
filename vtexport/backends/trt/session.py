"""Running one engine of TensorRT or TensorRT-RTX on the GPU: arrays in, arrays out.

For comparing engines with the graphs they were built from (`tests/gpu`), not for speed: buffers are made anew for each
run, and the kernels that TensorRT-RTX compiles when an engine is loaded are not kept between processes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vtexport.backends.trt.cuda_driver import Device
from vtexport.backends.trt.flavour import Flavour
from vtexport.dtypes import DTYPES
from vtexport.errors import InputError, UsageError, VtexportError, quoted

# (least, usual, largest) shape of each input
Ranges = Mapping[str, Sequence[Sequence[int]]]
# By TensorRT's name; bfloat16 travels as its bits
NUMPY = {each.tensorrt: each.numpy for each in DTYPES.values()}


@functools.cache
def _logger(flavour: Flavour) -> tuple[Any, list[str]]:
    """A logger and the errors it has heard: one for the process, because TensorRT keeps the first it is given."""
    trt = flavour.load()
    logged: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                logged.append(message)

    return Logger(), logged


def choose_profile(profiles: Sequence[Ranges], shapes: Mapping[str, Sequence[int]]) -> int:
    """The first profile that holds the shapes of all inputs.

    Raises:
        UsageError: none does; with the input that does not fit and what it may be.
    """
    for number, ranges in enumerate(profiles):
        if all(_fits(shapes[name], ranges[name]) for name in ranges):
            return number
    for name in shapes:
        if not any(_fits(shapes[name], ranges[name]) for ranges in profiles):
            allowed = ", ".join(f"{list(ranges[name][0])} to {list(ranges[name][2])}" for ranges in profiles)
            raise UsageError(
                f"the engine does not take {name} of shape {list(shapes[name])}, only {allowed}; "
                "build it again with --text-tokens for longer texts"
            )
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise UsageError(f"the engine has no profile for these shapes together: {given}; run it as its profiles say")


def _fits(shape: Sequence[int], limits: Sequence[Sequence[int]]) -> bool:
    least, _, most = limits
    return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))


class EngineRunner:
    """One engine, loaded on a GPU. Use it in a `with` block, or `close` it before its device."""

    def __init__(self, path: Path, device: Device, flavour: Flavour):
        """Loads the engine; TensorRT-RTX compiles its kernels for this GPU then.

        Raises:
            VtexportError: the library does not take the engine on this GPU; with its own sentence.
        """
        trt = flavour.load()
        self._device, self.path, self._version = device, path, f"{flavour.module} {trt.__version__}"
        logger, self._logged = _logger(flavour)
        self._logged.clear()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._check(self._engine is not None, "load")
        self._context = self._engine.create_execution_context()
        self._check(self._context is not None, "start")
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        for name in names:
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise VtexportError(f"{path} wants {name} in the host's memory, which this runner does not do")
        self.input_names = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.output_names = [n for n in names if n not in self.input_names]
        self.profiles: list[Ranges] = [
            {
                name: [tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, number)]
                for name in self.input_names
            }
            for number in range(self._engine.num_optimization_profiles)
        ]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs that the engine does not have are not passed on.

        Raises:
            UsageError: no profile takes the inputs' shapes.
            InputError: an input has another type than the engine's.
            VtexportError: the library or the driver failed.
        """
        self._logged.clear()
        given = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        for name, array in given.items():
            if array.dtype != self._dtype(name):
                raise InputError(f"{self.path} takes {name} as {self._dtype(name)}, not {array.dtype}; convert it")
        number = choose_profile(self.profiles, {name: array.shape for name, array in given.items()})
        self._check(self._context.set_optimization_profile_async(number, self._device.stream), "set the profile of")
        for name, array in given.items():
            self._check(self._context.set_input_shape(name, array.shape), f"set the shape of {name} for")
        left = self._context.infer_shapes()
        self._check(not left, f"infer the shapes of {', '.join(left)} for")
        outputs = {
            name: np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name)) for name in self.output_names
        }
        addresses: list[int] = []
        try:
            placed = {}
            for name, array in (given | outputs).items():
                placed[name] = self._device.allocate(array.nbytes)
                addresses.append(placed[name])
                self._check(self._context.set_tensor_address(name, placed[name]), f"place {name} for")
            for name, array in given.items():
                self._device.upload(placed[name], array)
            self._check(self._context.execute_async_v3(self._device.stream), "run")
            self._device.synchronize()
            for name, array in outputs.items():
                self._device.download(array, placed[name])
        finally:
            for address in addresses:
                self._device.free(address)
        return outputs

    def close(self) -> None:
        """Gives the engine's memory back, while its device is still open."""
        self._context = self._engine = self._runtime = None

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _dtype(self, name: str) -> np.dtype:
        kind: str = self._engine.get_tensor_dtype(name).name
        return NUMPY[kind]

    def _check(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            words = " ".join(self._logged) or "it gave no reason"
            raise VtexportError(
                f"{self._version} could not {what} {self.path} on this GPU: {quoted(words, self.path, limit=150)}; "
                "build the engine again with this version, for this GPU"
            )
