"""Libraries of another architecture, called under an emulator: what runs them, and how they are built."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
from native_ops.calls import Call, HostRunner, Prepared

from vtexport.plugins.op_structures import OPS, NativeStepTensors, NativeTensors
from vtexport.plugins.structures import Status

SOURCES = Path(__file__).parents[1] / "plugins" / "emulated"
TARGET = "aarch64-linux-gnu"
COMPILER = f"{TARGET}-g++"


def emulator() -> str | None:
    """The program that runs those of aarch64 here, None where there is none."""
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def build_caller(compiler: str, folder: Path) -> Path:
    """The program that carries out one call (emulated/run_call.cpp)."""
    program = folder / "run_call"
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(SOURCES / "run_call.cpp")]
    subprocess.run([*command, "-o", str(program), "-ldl"], check=True)
    return program


class _Elsewhere:
    """Answers to what a runner asks of the library before a call, given for the CPU form without loading it."""

    def workspace_bytes(self, *_arguments: object) -> tuple[Status, int]:
        return Status.OK, 0

    def status_text(self, status: int) -> str:
        return f"status {status}"


class EmulatedRunner(HostRunner):
    """The CPU form in a library of another architecture: every call is a run of the program under the emulator.

    Args:
        command: The emulator with its options, the program and the library.
        folder: Where calls and results are written.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self.library = _Elsewhere()  # type: ignore[assignment]
        self._command, self._folder = command, folder

    def launch(self, prepared: Prepared) -> None:
        call, buffers = prepared.call, prepared.buffers
        tensors = NativeStepTensors if call.is_step else NativeTensors
        parts = [f"vtx_cpu_{OPS[call.op_type].function}".encode(), bytes(call.sizes), _bytes(call)]
        written = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
        written += struct.pack("<QQ", len(bytes(tensors())), len(buffers))
        for name, buffer in buffers.items():
            written += struct.pack("<QQ", getattr(tensors, name).offset, buffer.size) + buffer.tobytes()
        path, result = self._folder / "call", self._folder / "result"
        path.write_bytes(written)
        subprocess.run([*self._command, str(path), str(result)], check=True)
        found = result.read_bytes()
        self._check(call, Status(struct.unpack_from("<Q", found)[0]))
        at = 8
        for buffer in buffers.values():
            buffer[:] = np.frombuffer(found, np.uint8, buffer.size, at)
            at += buffer.size


def _bytes(call: Call) -> bytes:
    return b"" if call.parameters is None else bytes(call.parameters)
