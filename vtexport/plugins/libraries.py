"""Places of built libraries, and the choice of one for a runtime.

A folder of libraries is called `<cpu>-trt<x.y>-cu<x>-sm<xx>`, less the parts that were not built, and stands in a
folder `plugins`: of the clone's `build/`, of the user's cache where vtexport is installed from a wheel, or of a bundle.
Beside the libraries lies `built.json`, which says what they were built from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.data_files import data_folder, is_packaged
from vtexport.errors import quoted
from vtexport.plugins.op_structures import ABI_VERSION
from vtexport.version import __version__

ORT_LIBRARY = "libvtexport_ort.so"
KERNELS, PLUGIN, REGISTER = "libvtexport_cuda.so", "libvtexport_plugin.so", "libvtexport_plugin_register.so"
RECORD = "built.json"
KERNELS_BEGIN = 8, 0  # the lowest compute capability that the CUDA kernels are written for
SWITCH = "VTEXPORT_NATIVE"  # 0 makes runtimes use the function bodies
_SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".map", ".txt", ".cmake"}
# What of the folder of sources each library is built from: a change elsewhere leaves it up to date.
_CUDA = ("CMakeLists.txt", "cuda.cmake", "common", "include", "kernels")
_SOURCES = {
    ORT_LIBRARY: ("CMakeLists.txt", "common", "cpu", "include", "onnxruntime"),
    KERNELS: _CUDA,
    PLUGIN: (*_CUDA, "tensorrt"),
    REGISTER: (*_CUDA, "tensorrt"),
}


@dataclass(frozen=True)
class Choice:
    """The form of the pruning ops that runs: in ONNX Runtime on the CPU, or in an engine.

    Attributes:
        library: The native library, None where the function bodies run.
        reason: Why there is none; empty where there is one.
    """

    library: Path | None
    reason: str = ""


def choose_library() -> Choice:
    """The library that sessions register: this installation's own, and no other.

    A bundle is data: code that lies in one is never loaded by opening it. A library that was built from other sources
    than the installation has is not taken.
    """
    return _choose(ORT_LIBRARY)


def choose_plugin() -> Choice:
    """The TensorRT plugin library that engines are built with, by the same rules."""
    return _choose(PLUGIN)


def architectures(folder: Path) -> list[tuple[int, int]]:
    """Compute capabilities, major and minor, that the kernels in a folder of libraries are compiled for."""
    numbers = folder.name.partition("-sm")[2].split("+")
    return [divmod(int(number), 10) for number in numbers if number.isdigit()]


def _choose(name: str) -> Choice:
    if os.environ.get(SWITCH, "").strip() == "0":
        return Choice(None, f"{SWITCH} is 0")
    reason = "it is not built"
    for record in sorted(default_folder().glob(f"{platform.machine()}*/{RECORD}")):
        library = record.with_name(name)
        if not library.is_file():
            continue
        fault = _unfit(record, name)
        if not fault:
            return Choice(library)
        reason = fault
    return Choice(None, reason)


def _unfit(path: Path, library: str) -> str:
    """The reason not to use a library with this record; empty where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        abi, sources = record["abi_version"], record["sources"][library]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read ({quoted(error, path)})"
    if abi != ABI_VERSION:
        return f"{path.parent} was built for another version of vtexport"
    if sources != sources_hash(library):
        return f"{path.parent} was built from other sources than are here now"
    return ""


def default_folder() -> Path:
    """The folder `plugins` of this installation."""
    if not is_packaged("plugins"):
        return data_folder("plugins").parent / "build" / "plugins"
    named = os.environ.get("VTEXPORT_CACHE")
    cache = Path(named).expanduser() if named else Path.home() / ".cache" / "vtexport"
    return cache / __version__ / "plugins"


def sources_hash(library: str) -> str:
    """SHA-256 over names and contents of the sources that a library is built from."""
    root = data_folder("plugins")
    digest = hashlib.sha256()
    parts = [root / part for part in _SOURCES[library]]
    files = [path for part in parts for path in ([part] if part.is_file() else part.rglob("*"))]
    for path in sorted(path for path in files if path.suffix in _SUFFIXES):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_record(folder: Path, libraries: dict[str, Any]) -> None:
    """Writes the record of a folder of libraries, in one step."""
    record = {
        "vtexport": __version__,
        "abi_version": ABI_VERSION,
        "sources": {library: sources_hash(library) for library in libraries},
        "machine": platform.machine(),
        "libraries": libraries,
    }
    unfinished = folder / f".{RECORD}.{os.getpid()}"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / RECORD)
