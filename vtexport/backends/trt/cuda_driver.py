"""The first NVIDIA GPU through the driver's own library (libcuda), by ctypes: memory, copies and one stream.

The driver is there wherever a GPU is, so nothing else has to be installed; TensorRT works in the same primary context.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from vtexport.errors import MissingDependencyError, VtexportError, quoted

# Of cuda.h; the names with _v2 are what its macros make of those without.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
}
_COMPUTE_CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class Device:
    """The GPU with its primary context current in this thread; close it when it is no longer used.

    Raises:
        MissingDependencyError: there is no NVIDIA driver or no GPU.
        VtexportError: a call of the driver failed, in any method; with the driver's own words.
    """

    def __init__(self, library: str = "libcuda.so.1"):
        self._context, self._stream = c_void_p(), c_void_p()
        advice = "engines run on an NVIDIA GPU; without one, run the bundle's graphs with --device cpu"
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise MissingDependencyError(f"there is no NVIDIA driver here ({quoted(error)}); {advice}") from error
        for name, arguments in _SIGNATURES.items():
            getattr(self._library, name).argtypes = arguments
        count = c_int()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGetCount", byref(count))
        except VtexportError as error:
            raise MissingDependencyError(f"the NVIDIA driver sees no GPU ({quoted(error)}); {advice}") from error
        if count.value == 0:
            raise MissingDependencyError(f"the NVIDIA driver sees no GPU; {advice}")
        self._device = c_int()
        self._call("cuDeviceGet", byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)

    @property
    def name(self) -> str:
        """As NVIDIA calls it."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode()

    @property
    def compute_capability(self) -> str:
        """Such as "8.9"."""
        found = []
        for attribute in _COMPUTE_CAPABILITY:
            value = c_int()
            self._call("cuDeviceGetAttribute", byref(value), attribute, self._device)
            found.append(str(value.value))
        return ".".join(found)

    @property
    def stream(self) -> int:
        """Handle of the stream that work is put on."""
        assert self._stream.value is not None
        return self._stream.value

    def synchronize(self) -> None:
        """Waits until everything on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def allocate(self, nbytes: int) -> int:
        """Address of new memory on the GPU; never null, also for nothing."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(nbytes, 1))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._call("cuMemFree_v2", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the GPU and waits for it."""
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        """Fills a contiguous array from the GPU."""
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def close(self) -> None:
        """Gives the stream and the context back."""
        if self._stream.value:
            self._call("cuStreamDestroy_v2", self._stream)
        if self._context.value:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)
        self._stream, self._context = c_void_p(), c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            text = c_char_p()
            self._library.cuGetErrorString(code, byref(text))
            raise VtexportError(f"{name} failed with CUDA error {code}: {(text.value or b'unknown').decode()}")
