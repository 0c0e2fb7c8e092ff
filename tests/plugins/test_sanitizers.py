"""Hostile calls and some of the authors' vectors under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")


def runtime(name: str) -> str:
    """The sanitizer's library that belongs to the compiler, "" where it has none."""
    shown = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return shown if Path(shown).is_file() else ""


def test_nothing_is_found(build_native: Callable[..., Path]) -> None:
    preloaded = runtime("libasan.so")
    if not preloaded:
        pytest.skip(f"{COMPILER} has no AddressSanitizer")
    library = build_native("sanitized", "-DVTX_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    environment = {
        **os.environ,
        "VTEXPORT_TEST_LIBRARY": str(library),
        "LD_PRELOAD": f"{preloaded}:{runtime('libstdc++.so')}",
        # Python itself keeps memory to its end; a NaN is no error.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    chosen = [str(HERE / "test_native_hostile.py"), f"{HERE / 'test_native_cpu.py'}::test_golden_vectors"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *chosen]
    few = "not golden or (seed1 and 64)"
    done = subprocess.run([*command, "-k", few], capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
