"""Building the native libraries with the machine's own compilers, through CMake."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vtexport.data_files import data_folder
from vtexport.errors import InputError, MissingDependencyError, quoted
from vtexport.plugins.libraries import KERNELS, ORT_LIBRARY, PLUGIN, REGISTER, default_folder, write_record

NEEDS_KERNELS = "it needs the CUDA kernels"
OLDEST_TENSORRT = 10, 3
_CUDA_HINTS = ("/usr/local/cuda/bin",)


@dataclass
class LibraryFolder:
    """Libraries that a build gave.

    Attributes:
        folder: Where the libraries are.
        libraries: Their names, with what each is for.
        missing: What was not built, with the reason and what to do.
    """

    folder: Path
    libraries: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def build_libraries(
    output: Path | None = None,
    *,
    tensorrt_include: Path | None = None,
    cpu_only: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> LibraryFolder:
    """Builds what this machine can build: the library for ONNX Runtime, and with an nvcc the CUDA kernels and, with
    TensorRT's headers, its plugin.

    Args:
        output: The folder that gets the folder of libraries; the installation's own when left out.
        tensorrt_include: The folder of NvInferRuntime.h.
        cpu_only: Leaves out what takes an nvcc, without a word about it.
        tell: Gets a line of progress at a time.

    Raises:
        MissingDependencyError: There is no C++ compiler or no CMake.
        InputError: The library for ONNX Runtime does not compile, `tensorrt_include` has no headers of a TensorRT that
            the plugin is for, or a folder cannot be written to.
    """
    sources, output = data_folder("plugins"), output if output is not None else default_folder()
    cmake, generator = find_cmake()
    _check_compiler()
    nvcc = None if cpu_only else _nvcc()
    tensorrt = None if tensorrt_include is None else _tensorrt_version(tensorrt_include)
    arguments = [*generator, "-DCMAKE_BUILD_TYPE=Release"]
    if tensorrt_include is not None:
        arguments.append(f"-DTENSORRT_INCLUDE_DIR={tensorrt_include.resolve()}")
    _make_folder(output)
    work = _work_folder()
    with _alone_in(work):
        _forget_settings(work)
        tell(f"configuring in {work}")
        configure = [cmake, "-S", str(sources), "-B", str(work), *arguments]
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        said = ""
        if nvcc:
            try:
                said = _run([*configure, "-DVTX_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"], f"configuring with {nvcc}")
            except InputError as error:
                missing[KERNELS] = str(error)
                _forget_settings(work)
        if not said:
            _run([*configure, "-DVTX_CUDA=OFF"], "configuring the native libraries")
        tell("compiling the library for ONNX Runtime's CPU provider")
        _run(
            [cmake, "--build", str(work), "--target", "vtexport_ort", *_jobs()],
            "compiling the library for ONNX Runtime",
        )
        found[ORT_LIBRARY] = "the ops in ONNX Runtime on the CPU, and their C API (vtx_cpu.h)"
        if not cpu_only:
            _build_cuda(cmake, work, sources, nvcc, tensorrt, found, missing, tell)
        built = LibraryFolder(output / folder_name(said, found, tensorrt), found, missing)
        _make_folder(built.folder)
        for library in found:
            unfinished = built.folder / f".{library}.{os.getpid()}"
            shutil.copy2(work / library, unfinished)
            unfinished.replace(built.folder / library)
        write_record(built.folder, found)
        return built


def _build_cuda(
    cmake: str,
    work: Path,
    sources: Path,
    nvcc: str | None,
    tensorrt: str | None,
    found: dict[str, str],
    missing: dict[str, str],
    tell: Callable[[str], object],
) -> None:
    """The libraries that take nvcc; what does not work is a reason in `missing` and no error."""
    if not (sources / "kernels" / "CMakeLists.txt").exists():
        missing[KERNELS] = "this version of vtexport has no sources for it"
        missing[PLUGIN] = missing[KERNELS]
        return
    if nvcc is None:
        missing[KERNELS] = "no nvcc is found on the PATH or in /usr/local/cuda/bin; install the CUDA toolkit (12.6 on)"
        missing[PLUGIN] = NEEDS_KERNELS
        return
    if KERNELS in missing:
        missing[PLUGIN] = NEEDS_KERNELS
        return
    tell("compiling the CUDA kernels")
    try:
        _run([cmake, "--build", str(work), "--target", "vtexport_cuda", *_jobs()], "compiling the CUDA kernels")
    except InputError as error:
        missing[KERNELS] = str(error)
        missing[PLUGIN] = NEEDS_KERNELS
        return
    found[KERNELS] = "the ops on CUDA devices (vtx_cuda.h)"
    if not (sources / "tensorrt" / "CMakeLists.txt").exists():
        missing[PLUGIN] = "this version of vtexport has no sources for it"
        return
    if tensorrt is None:
        missing[PLUGIN] = "it takes TensorRT's headers; give their folder with --tensorrt-include"
        return
    tell("compiling the TensorRT plugin")
    try:
        target = "vtexport_plugin_register"  # which needs vtexport_plugin
        _run([cmake, "--build", str(work), "--target", target, *_jobs()], "compiling the TensorRT plugin")
    except InputError as error:
        missing[PLUGIN] = str(error)
        return
    found[PLUGIN] = f"the ops as plugins of TensorRT {tensorrt}"
    found[REGISTER] = "registers them in tools that only open a library (polygraphy run --plugins)"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be written to ({error.strerror}); give another one with --output, or set "
            "VTEXPORT_CACHE where it is the installation's own"
        ) from error


@contextmanager
def _alone_in(work: Path) -> Iterator[None]:
    """Waits until no other build compiles in the folder."""
    _make_folder(work)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_settings(work: Path) -> None:
    """Makes CMake look for the compilers and headers anew, and keeps what is compiled.

    CMake would go on with the compiler and TensorRT's headers of the build before, whatever is named now.
    """
    (work / "CMakeCache.txt").unlink(missing_ok=True)
    shutil.rmtree(work / "CMakeFiles", ignore_errors=True)


def folder_name(said: str, libraries: dict[str, str], tensorrt: str | None) -> str:
    """`<cpu>-trt<x.y>-cu<x>-sm<xx>`, less what was not built; several architectures are joined by "+".

    Args:
        said: What CMake said when it was configured with an nvcc, which names its version and the architectures.
        libraries: What was built.
        tensorrt: The version of TensorRT's headers.
    """
    parts = [platform.machine()]
    if PLUGIN in libraries:
        parts.append(f"trt{tensorrt}")
    if KERNELS in libraries:
        cuda = re.search(r"CUDA kernels for (.*) by nvcc (\d+)", said)
        numbers = re.findall(r"\d+", cuda[1]) if cuda else []
        parts += [f"cu{cuda[2] if cuda else ''}", "sm" + "+".join(dict.fromkeys(numbers))]
    return "-".join(parts)


def _work_folder() -> Path:
    """The folder that CMake works in: never in a bundle, which is to be copied as it is."""
    return default_folder() / f".work-{platform.machine()}"


def _path() -> str:
    """PATH, with the folders of this Python's scripts (pip's cmake and ninja) and of CUDA behind it."""
    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent), *_CUDA_HINTS])


def find_cmake() -> tuple[str, list[str]]:
    """CMake's path, and the options that name a generator which is there.

    Raises:
        MissingDependencyError: there is no CMake, or neither ninja nor make.
    """
    cmake, ninja = shutil.which("cmake", path=_path()), shutil.which("ninja", path=_path())
    if cmake is None:
        raise MissingDependencyError(
            "building the native libraries takes CMake, which is not found; install the package cmake of your system, "
            "or run pip install cmake ninja"
        )
    if ninja:
        return cmake, ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if shutil.which("make", path=_path()) is None:
        raise MissingDependencyError(
            "building the native libraries takes ninja or make, and neither is found; run pip install ninja"
        )
    return cmake, ["-G", "Unix Makefiles"]


def _check_compiler() -> None:
    named = os.environ.get("CXX")
    for compiler in [named] if named else ["c++", "g++", "clang++"]:
        if compiler and shutil.which(compiler.split()[0], path=_path()):
            return
    raise MissingDependencyError(
        f"building the native libraries takes a C++17 compiler, and {named or 'none'} is "
        f"{'not ' if named else ''}found; install g++ or clang++, or set CXX"
    )


def _nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=_path())


def _tensorrt_version(include: Path) -> str:
    header = include / "NvInferVersion.h"
    if not (include / "NvInferRuntime.h").is_file() or not header.is_file():
        raise InputError(
            f"{include} has no NvInferRuntime.h and NvInferVersion.h; give the folder of TensorRT's headers"
        )
    text = header.read_text(encoding="utf-8", errors="replace")
    numbers = {}
    for part in ("MAJOR", "MINOR"):
        found = re.search(rf"#define\s+(?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)?\s+(\d+)", text)
        if found is None:
            raise InputError(f"{header} does not say TensorRT's version; give the folder of TensorRT's headers")
        numbers[part] = int(found[1])
    version = f"{numbers['MAJOR']}.{numbers['MINOR']}"
    if (numbers["MAJOR"], numbers["MINOR"]) < OLDEST_TENSORRT:
        raise InputError(
            f"{include} has the headers of TensorRT {version}, and the plugin takes those of 10.3 or newer"
        )
    return version


def _jobs() -> list[str]:
    return ["--parallel", str(len(os.sched_getaffinity(0)))]


def _run(command: list[str], what: str) -> str:
    """Output of the command; raises InputError with the first of the errors in it where it fails."""
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env={**os.environ, "PATH": _path()}
    )
    if done.returncode:
        said, log = done.stdout + done.stderr, _work_folder() / "failed.log"
        log.write_text(f"{shlex.join(command)}\n\n{said}", encoding="utf-8")
        raise InputError(f"{what} failed: {quoted(_reason(said), log)}; the command and all that it said are in {log}")
    return done.stdout


def _reason(said: str) -> str:
    """The errors in what CMake or a compiler said, in one line."""
    # Of CMake's errors the first line is a place, and the indented ones below it are the sentence.
    if found := re.search(r"^CMake Error[^\n]*\n((?:[ \t]+[^\n]*\n|\n)+)", said, re.MULTILINE):
        return textwrap.shorten(found[1], 300, placeholder=" ...")
    lines = [line for line in said.splitlines() if line.strip()]
    return " | ".join([line for line in lines if re.search(r"\berror\b|CMake Error", line)][:3] or lines[-3:])
