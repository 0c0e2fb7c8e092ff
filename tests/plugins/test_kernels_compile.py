"""The CUDA kernels with a real nvcc, without a GPU: they compile, every architecture assembles, no kernel spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulated_kernels import KERNELS, ROOT

INCLUDES = [f"-I{ROOT / 'plugins' / each}" for each in ("include", "common")]
WANTED = ("80", "86", "87", "89", "90", "100", "110", "120")
FEWEST_THREADS = 128  # of a block of the smallest kernel; registers times threads have to fit in 65536


def _nvcc() -> str:
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not found:
        pytest.skip("there is no nvcc; install a CUDA toolkit from 12.6 on to compile the kernels")
    return found


@pytest.fixture(scope="module")
def nvcc() -> str:
    return _nvcc()


@pytest.fixture(scope="module")
def ptx(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every source's PTX for the oldest architecture: the C++ is compiled once, and only assembled for each GPU."""
    folder = tmp_path_factory.mktemp("ptx")

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.ptx"
        flags = ["-std=c++17", "-O3", "-arch=compute_80", "-Xcompiler=-Wall", "-Werror=all-warnings"]
        done = subprocess.run([nvcc, *flags, *INCLUDES, "-ptx", str(source), "-o", str(target)], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, sorted(KERNELS.glob("*.cu"))))


def architectures() -> list[str]:
    """Those of the wanted ones that the compiler here knows."""
    found = shutil.which("nvcc")
    if not found:
        return ["90"]  # one test, which then skips itself with the reason
    known = subprocess.run([found, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    return [each for each in WANTED if f"sm_{each}" in known]


@pytest.mark.parametrize("architecture", architectures())
def test_every_kernel_assembles_without_spills(architecture: str, ptx: list[Path], nvcc: str, tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas") or str(Path(nvcc).resolve().with_name("ptxas"))
    kernels = 0
    for source in ptx:
        command = [ptxas, "-v", f"-arch=sm_{architecture}", str(source), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
        report = done.stdout + done.stderr
        assert done.returncode == 0, report
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
        assert spills or "entry function" not in report
        assert all(pair == ("0", "0") for pair in spills), f"{source.name} for sm_{architecture}:\n{report}"
        registers = [int(each) for each in re.findall(r"Used (\d+) registers", report)]
        assert all(each <= 255 for each in registers)
        kernels += len(registers)
    assert kernels > 40, "fewer kernels than there are"


def test_cmake_builds_the_library_with_the_api(nvcc: str, tmp_path: Path) -> None:
    """What users build, for one architecture: libvtexport_cuda.so has every function of vtx_cuda.h and needs no CUDA
    library beside the driver's."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake")
    build = tmp_path / "build"
    jobs = str(len(os.sched_getaffinity(0)))
    subprocess.run(
        [cmake, "-S", str(KERNELS), "-B", str(build), "-DCMAKE_CUDA_ARCHITECTURES=87", f"-DCMAKE_CUDA_COMPILER={nvcc}"],
        check=True,
        capture_output=True,
    )
    done = subprocess.run([cmake, "--build", str(build), "-j", jobs], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    library = build / "libvtexport_cuda.so"
    exported = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True).stdout
    header = (ROOT / "plugins" / "include" / "vtx_cuda.h").read_text()
    functions = set(re.findall(r"\b(vtx_cuda_\w+)\(", header))
    assert len(functions) == 22
    assert functions <= set(re.findall(r" T (vtx_\w+)", exported))
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True).stdout
    assert "libcudart" not in needed
