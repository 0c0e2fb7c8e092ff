"""The native libraries that the tests call, built once a run from the sources as they are."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from native_ops.calls import HostRunner

from vtexport.plugins.build import find_cmake
from vtexport.plugins.libraries import ORT_LIBRARY

ROOT = Path(__file__).parents[2]
GIVEN = "VTEXPORT_TEST_LIBRARY"  # a library built already: what the run under the sanitizers tests


def build(name: str, *options: str) -> Path:
    """The library built in build/tests/<name>, where only what changed is compiled again. Warnings are errors."""
    work = ROOT / "build" / "tests" / name
    work.mkdir(parents=True, exist_ok=True)
    cmake, generator = find_cmake()
    settings = ["-DVTX_WERROR=ON", "-DVTX_CUDA=OFF", *options]
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes the first builds
        for command in (
            [cmake, "-S", str(ROOT / "plugins"), "-B", str(work), *generator, *settings],
            [cmake, "--build", str(work), "--target", "vtexport_ort", "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return work / ORT_LIBRARY


@pytest.fixture(scope="session")
def build_native() -> Callable[..., Path]:
    return build


@pytest.fixture(scope="session")
def native_library() -> Path:
    return Path(os.environ[GIVEN]) if GIVEN in os.environ else build("plain")


@pytest.fixture(scope="session")
def cpu(native_library: Path) -> HostRunner:
    """The ops on the CPU, by the C API."""
    return HostRunner(native_library, "vtx_cpu_")
