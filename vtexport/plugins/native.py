"""Calling the ops of a native library by its C API: on the CPU (`vtx_cpu_*`) or a CUDA device (`vtx_cuda_*`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtexport.errors import MissingDependencyError, quoted
from vtexport.plugins.op_structures import (
    ABI_VERSION,
    OPS,
    NativeSizes,
    NativeStepSizes,
    NativeStepTensors,
    NativeTensors,
)
from vtexport.plugins.op_table import NativeOp
from vtexport.plugins.structures import Status

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, Task, ctypes.c_void_p)


class Executor(ctypes.Structure):
    """`vtx_parallel`: threads for the CPU form. Keep it alive for as long as calls use it."""

    _fields_ = [("run", Run), ("context", ctypes.c_void_p), ("threads", ctypes.c_int32)]


class Library:
    """A loaded library of native ops.

    Args:
        path: The shared library.
        prefix: "vtx_cpu_" or "vtx_cuda_"; says which API it has. A library of the CUDA API that works on host memory
            is called with host addresses and no stream.

    Raises:
        MissingDependencyError: It cannot be loaded, or was built from another version of the structures.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise MissingDependencyError(
                f"the library {path} cannot be loaded ({quoted(error, path)}); build it again"
            ) from error
        self.path, self.prefix = path, prefix
        self._library.vtx_status_text.restype = ctypes.c_char_p
        version = self._function("abi_version")()
        if version != ABI_VERSION:
            raise MissingDependencyError(
                f"the library {path} has structures of version {version}, and this vtexport those of {ABI_VERSION}; "
                "build it again"
            )

    def _function(self, name: str) -> Callable[..., int]:
        function: Callable[..., int] = getattr(self._library, self.prefix + name)
        return function

    def text(self, name: str) -> str:
        """Text that a function without arguments returns, such as "instructions" or "last_error"."""
        function = getattr(self._library, self.prefix + name)
        function.restype = ctypes.c_char_p
        return bytes(function()).decode()

    def status_text(self, status: int) -> str:
        """The library's sentence for a status."""
        return bytes(self._library.vtx_status_text(status)).decode()

    def workspace_bytes(
        self, op_type: str, sizes: NativeSizes | NativeStepSizes | None, parameters: ctypes.Structure | None
    ) -> tuple[Status, int]:
        """Bytes of workspace that the CUDA form wants; 0 for the CPU form, which has memory of its own."""
        if self.prefix == "vtx_cpu_":
            return Status.OK, 0
        found = ctypes.c_size_t(0)
        first = _arguments(OPS[op_type], sizes, parameters)
        return Status(self._function(f"{OPS[op_type].function}_workspace")(*first, ctypes.byref(found))), found.value

    def call(
        self,
        op_type: str,
        sizes: NativeSizes | NativeStepSizes | None,
        parameters: ctypes.Structure | None,
        addresses: Mapping[str, int | None] | None,
        *,
        executor: Executor | None = None,
        workspace: int | None = None,
        workspace_bytes: int = 0,
        stream: int | None = None,
    ) -> Status:
        """Runs an op on raw addresses: host memory for the CPU form, device memory for the CUDA form.

        Args:
            op_type: Such as "VtxPruneSID".
            sizes: None passes a null pointer, as in the arguments that follow.
            parameters: From `structures.parameters_of`.
            addresses: By the tensors' names in `vtx_tensors` or `vtx_step_tensors`.
            executor: Of the CPU form; None runs on the calling thread.
            workspace, workspace_bytes, stream: Of the CUDA form; the workspace is aligned to 256 bytes.

        Returns:
            The status. The CUDA form has then only enqueued the work.
        """
        op = OPS[op_type]
        tensors: NativeTensors | NativeStepTensors | None = None
        if addresses is not None:
            tensors = (NativeStepTensors if op.is_step else NativeTensors)(**addresses)
        arguments = [*_arguments(op, sizes, parameters), _by_reference(tensors)]
        if self.prefix == "vtx_cpu_":
            arguments.append(_by_reference(executor))
        else:
            arguments += [ctypes.c_void_p(workspace), ctypes.c_size_t(workspace_bytes), ctypes.c_void_p(stream)]
        return Status(self._function(op.function)(*arguments))


def _by_reference(structure: ctypes.Structure | None) -> Any:
    return ctypes.c_void_p(None) if structure is None else ctypes.byref(structure)


def _arguments(op: NativeOp, sizes: Any, parameters: ctypes.Structure | None) -> list[Any]:
    return [_by_reference(sizes), *([_by_reference(parameters)] if op.parameters else [])]
