"""The test programs of tests/plugins/tensorrt and the plugin library, built once a run by CMake."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests" / "plugins" / "tensorrt"


def headers() -> str | None:
    """The folder of TensorRT's headers. They are NVIDIA's and not in this repository, so a person has to name it."""
    folder = os.environ.get("TENSORRT_INCLUDE_DIR")
    return folder if folder and (Path(folder) / "NvInferRuntime.h").is_file() else None


def major_version() -> int:
    """Of TensorRT's headers."""
    text = (Path(headers() or "") / "NvInferVersion.h").read_text()
    found = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +(\d+)", text)
    assert found
    return int(found[1])


needs_headers = pytest.mark.skipif(
    headers() is None, reason="TENSORRT_INCLUDE_DIR does not name a folder with TensorRT's NvInferRuntime.h"
)


def build(target: str, *, sanitize: bool) -> Path:
    """Builds a target in a folder of build/tests, where only what changed is compiled again; returns the folder."""
    # pip's cmake and ninja are beside this Python, whether or not its environment is activated.
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool, path=path) is None]
    if missing:
        pytest.skip(f"there is no {' and no '.join(missing)} here")
    named = headers()
    kind = "sanitized" if sanitize else "plain"
    # CMake remembers where it found headers, so those of another folder get a build of their own.
    against = hashlib.sha256(named.encode()).hexdigest()[:8] if named else "no-headers"
    folder = ROOT / "build" / "tests" / f"tensorrt-{kind}-{against}"
    folder.mkdir(parents=True, exist_ok=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    options = [f"-DSANITIZE={'ON' if sanitize else 'OFF'}", f"-DTENSORRT_INCLUDE_DIR={named or ''}"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes the first builds
        for command in (
            ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_CXX_COMPILER=g++", *generator, *options],
            ["cmake", "--build", str(folder), "--target", target, "--parallel", str(len(os.sched_getaffinity(0)))],
        ):
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
            said = done.stdout + done.stderr
            assert done.returncode == 0, said[-8000:]
            assert "warning:" not in said, said
    return folder


def run(program: Path) -> str:
    """Runs a test program and returns what it printed; it ends with 0 where all its checks hold."""
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout
