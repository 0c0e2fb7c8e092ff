"""Builds plugins/kernels as C++ against `emulation/`, where every thread of a grid is a fiber: kernels on a CPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS, EMULATION = ROOT / "plugins" / "kernels", ROOT / "tests" / "plugins" / "emulation"
INCLUDES = [KERNELS, ROOT / "plugins" / "include", ROOT / "plugins" / "common", EMULATION]
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-mf16c", "-mfma", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def sources() -> list[Path]:
    return [*sorted(KERNELS.glob("*.cu")), ROOT / "plugins" / "common" / "check.cpp", *sorted(EMULATION.glob("*.cpp"))]


def build(folder: Path, *flags: str) -> Path:
    """The library, with the functions of vtx_cuda.h on host memory."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler; install g++")
    if platform.machine() != "x86_64":
        pytest.skip("the emulation switches fibers on x86-64 only")

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        includes = [f"-I{include}" for include in INCLUDES]
        command = [compiler, *FLAGS, *flags, *includes, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources()))
    library = folder / "libvtexport_emulated.so"
    subprocess.run(
        [compiler, "-shared", *flags, "-Wl,--no-undefined", "-o", str(library), *map(str, objects)], check=True
    )
    return library
