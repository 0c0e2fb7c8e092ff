"""The CUDA kernels' CMake project: which architectures it takes. That the sources compile is test_kernels_compile's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels"
WANTED = ("80", "86", "87", "89", "90", "100", "110", "120")


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if not found or not shutil.which("cmake"):
        pytest.skip("there is no nvcc or no cmake on the path")
    return found


def configure(folder: Path, *options: str) -> str:
    done = subprocess.run(["cmake", "-S", str(KERNELS), "-B", str(folder), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_known_architecture_is_taken(nvcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDAARCHS", raising=False)
    codes = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    expected = ";".join(f"{each}-real" for each in WANTED if f"sm_{each}" in codes)
    assert f"CUDA kernels for {expected} by nvcc" in configure(tmp_path)


def test_the_environment_can_choose_architectures(nvcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDAARCHS", "87")
    assert "CUDA kernels for 87 by nvcc" in configure(tmp_path)


def test_architectures_can_be_chosen(nvcc: str, tmp_path: Path) -> None:
    said = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=87;90", "-DVTX_PTXAS_REPORT=ON")
    assert "CUDA kernels for 87;90 by nvcc" in said
    targets = subprocess.run(
        ["cmake", "--build", str(tmp_path), "--target", "help"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"\bvtexport_kernels\b", targets)
    assert re.search(r"\bvtexport_cuda\b", targets)
