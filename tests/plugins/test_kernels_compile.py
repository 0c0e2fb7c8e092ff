"""The CUDA kernels with a real nvcc, without a GPU: they compile, every architecture assembles, no kernel spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import kernel_registers
import pytest
from emulated_kernels import KERNELS, ROOT
from kernel_registers import ARCHITECTURES, assemble, compile_ptx, find_nvcc, known_architectures

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = find_nvcc()
    if found is None:
        pytest.skip("there is no nvcc; install a CUDA toolkit from 12.6 on to compile the kernels")
    return found


@pytest.fixture(scope="module")
def ptx(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return compile_ptx(nvcc, tmp_path_factory.mktemp("ptx"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_assembles_without_spills(architecture: str, ptx: list[Path], nvcc: str) -> None:
    if architecture not in known_architectures(nvcc):
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    kernels = assemble(nvcc, ptx, architecture)
    assert [each for each in kernels if each.spilled_bytes] == []
    assert {each.source for each in kernels} >= {"prunesid", "svdprune", "vitcop", "nuwa", "greedy", "cluster_merge"}
    launched = sum(source.read_text().count("__global__") for source in KERNELS.glob("*.cu"))
    assert len({each.name for each in kernels if each.registers}) >= launched


def test_a_spill_in_a_report_is_seen() -> None:
    report = """ptxas info    : Compiling entry function '_Z4testv' for 'sm_80'
ptxas info    : Function properties for _Z4testv
    8 bytes stack frame, 4 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""
    (kernel,) = kernel_registers._kernels("test", report)
    assert (kernel.name, kernel.registers, kernel.spilled_bytes) == ("_Z4testv", 40, 20)


def test_cmake_builds_the_library_with_the_api(nvcc: str, tmp_path: Path) -> None:
    """The library that users build, for one architecture: libvtexport_cuda.so has every function of vtx_cuda.h and
    needs no CUDA library beside the driver's."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake")
    build = tmp_path / "build"
    options = ["-DCMAKE_CUDA_ARCHITECTURES=87", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    subprocess.run([cmake, "-S", str(KERNELS), "-B", str(build), *options], check=True, capture_output=True)
    jobs = str(len(os.sched_getaffinity(0)))
    done = subprocess.run([cmake, "--build", str(build), "-j", jobs], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    library = str(build / "libvtexport_cuda.so")
    exported = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True).stdout
    header = (ROOT / "plugins" / "include" / "vtx_cuda.h").read_text()
    functions = set(re.findall(r"\b(vtx_cuda_\w+)\(", header))
    assert len(functions) == 22
    assert functions <= set(re.findall(r" T (vtx_\w+)", exported))
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
    assert "libcudart" not in needed
