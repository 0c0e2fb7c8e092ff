"""Builds plugins/kernels into a shared library for the GPU that is here, with CMake or straight with nvcc."""

from __future__ import annotations

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_check.environment import Tools

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "libvtexport_cuda.so"
FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-Wall", "-Xptxas", "-v")


class BuildError(Exception):
    """The kernels do not build; with the end of the compiler's output."""


@dataclass(frozen=True)
class KernelLibrary:
    """The library that was built: its file, how, in how many seconds, and what ptxas says of spilled registers."""

    library: Path
    by: str
    seconds: float
    spills: tuple[str, ...]


def build_kernels(tools: Tools, capability: str, folder: Path) -> KernelLibrary:
    """Builds for one compute capability, such as "9.0", into `folder`.

    Raises:
        BuildError: With the compiler's own words.
    """
    start = time.perf_counter()
    architecture = capability.replace(".", "")
    folder.mkdir(parents=True, exist_ok=True)
    by = "nvcc"
    if tools.cmake:
        try:
            library, log = _by_cmake(tools, architecture, folder)
            by = "cmake"
        except BuildError as error:  # such as a CMake too old for this nvcc; real faults of the sources show again
            library, log = _by_nvcc(tools, architecture, folder)
            by, log = "nvcc, since CMake failed", f"{error}\n{log}"
    else:
        library, log = _by_nvcc(tools, architecture, folder)
    (folder / "build.log").write_text(log)
    return KernelLibrary(library, by, time.perf_counter() - start, spills(log))


def _by_cmake(tools: Tools, architecture: str, folder: Path) -> tuple[Path, str]:
    """The project in plugins/kernels."""
    jobs = str(len(os.sched_getaffinity(0)))
    configure = [
        *(str(tools.cmake), "-S", str(ROOT / "plugins" / "kernels"), "-B", str(folder / "cmake")),
        *(f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", f"-DCMAKE_CUDA_COMPILER={tools.nvcc}"),
        *("-DCMAKE_BUILD_TYPE=Release", "-DVTX_PTXAS_REPORT=ON"),
    ]
    log = _run(configure)
    log += _run([str(tools.cmake), "--build", str(folder / "cmake"), "-j", jobs])
    library = folder / "cmake" / LIBRARY
    if not library.exists():
        raise BuildError(f"CMake built no {library}")
    return library, log


def _by_nvcc(tools: Tools, architecture: str, folder: Path) -> tuple[Path, str]:
    """Every source of the kernels and of the checks they share with the other forms, one compiler each."""
    plugins = ROOT / "plugins"
    sources = [*sorted((plugins / "kernels").glob("*.cu")), *sorted((plugins / "common").glob("*.cpp"))]
    if not any(source.suffix == ".cu" for source in sources):
        raise BuildError(f"there are no kernels in {plugins / 'kernels'}")
    includes = [f"-I{plugins / name}" for name in ("include", "kernels", "common")]
    target_gpu = ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    flags = [*FLAGS, *target_gpu, *includes]

    def compile_one(source: Path) -> tuple[Path, str]:
        target = folder / f"{source.stem}.o"
        return target, _run([str(tools.nvcc), *flags, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = list(pool.map(compile_one, sources))
    library = folder / LIBRARY
    objects = [str(target) for target, _ in made]
    log = _run([str(tools.nvcc), "-shared", *target_gpu, "-o", str(library), *objects])
    return library, "".join(text for _, text in made) + log


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().split("\n")[-30:])
        raise BuildError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{tail}")
    return f"$ {' '.join(command)}\n{done.stdout}{done.stderr}"


def spills(log: str) -> tuple[str, ...]:
    """The kernels of which ptxas says that they spill registers, with the line that says so."""
    found, name = [], ""
    for line in log.split("\n"):
        entry = re.search(r"(?:Compiling entry function|Function properties for) '?([^' ]+)", line)
        name = entry[1] if entry else name
        counts = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if counts and (int(counts[1]) or int(counts[2])):
            found.append(f"{name}: {line.strip()}")
    return tuple(dict.fromkeys(found))
