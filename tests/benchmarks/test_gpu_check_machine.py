"""gpu-check on a machine that lacks something, and what it does with programs that take too long."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import environment, parts
from gpu_check.environment import NotHereError, Tools
from gpu_check.processes import run_within
from gpu_check.targets import targets


def test_an_nvcc_too_new_for_the_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(Path("/opt/cuda/bin/nvcc"), None, None)
    said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88"
    monkeypatch.setattr(environment, "_output", lambda command: said)
    monkeypatch.setattr(environment, "driver_cuda", lambda: (12, 6))
    with pytest.raises(NotHereError, match=r"of CUDA 13, and this driver knows CUDA up to 12\.6"):
        environment.check_driver(tools)
    for fits in ((13, 0), (14, 1), None):
        monkeypatch.setattr(environment, "driver_cuda", lambda fits=fits: fits)
        environment.check_driver(tools)


def test_a_driver_that_is_not_there_has_no_version() -> None:
    assert environment.driver_cuda("libthere_is_none.so.1") is None
    assert environment.driver_cuda("libc.so.6") is None, "a library without the question"


def test_what_a_stopped_program_has_started_ends_with_it(tmp_path: Path) -> None:
    """Else a checker of one part would still use the GPU while the next one measures."""
    said = tmp_path / "pid"
    inner = f"import os, pathlib, time; pathlib.Path({str(said)!r}).write_text(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert run_within(1.0, [sys.executable, "-c", outer], quiet=True) == (None, "")
    child = Path("/proc", said.read_text(), "stat")
    until = time.perf_counter() + 10
    while child.exists() and ") Z " not in child.read_text() and time.perf_counter() < until:
        time.sleep(0.01)  # the kernel takes its time over a kill
    assert not child.exists() or ") Z " in child.read_text()
    assert run_within(5.0, [sys.executable, "-c", "print('done')"], quiet=True) == (0, "done\n")


def test_a_small_gpu_leaves_the_model_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 10**9, 16 * 10**9))
    report: dict[str, Any] = {}
    assert parts.model(report, Path("no.so"), Tools(Path("nvcc"), None, None), True, lambda: None)
    assert "wants 20 GB of GPU memory, and 8 GB are free" in report["model"]["left_out"]
    assert "left out" in capsys.readouterr().out
    assert targets(report) == []
