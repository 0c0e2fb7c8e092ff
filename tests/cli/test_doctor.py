"""What `vtexport doctor` says of TensorRT-RTX."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vtexport.cli import doctor
from vtexport.cli.main import main
from vtexport.engines import rtx


def rtx_finding(capsys: Any) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = [finding for finding in findings if finding["ability"] == "build RTX engines"]
    return finding


@pytest.mark.parametrize(
    ("gpu", "running"),
    [("missing", "running them takes an NVIDIA GPU, and none is seen"), ("ok", "an NVIDIA GPU is there to run them")],
)
def test_the_version_and_whether_engines_run_here(
    gpu: Any, running: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Finding("run on a GPU", gpu, "NVIDIA GPU"))
    finding = rtx_finding(capsys)
    assert finding["status"] == "ok"
    assert finding["what"] == f"TensorRT-RTX {tensorrt_rtx.__version__} builds engines here; {running}"


@pytest.mark.parametrize(("value", "said"), [("", "not tried here"), ("1", "only cached models are used")])
def test_the_hub_is_not_said_to_answer(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert said in doctor._hub().what


def test_without_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(rtx.importlib.util, "find_spec", lambda name: None)
    finding = rtx_finding(capsys)
    assert (finding["status"], finding["what"]) == ("missing", "TensorRT-RTX")
    assert "run pip install 'vtexport[tensorrt-rtx]' to build engines here" in finding["next_step"]


def test_a_broken_installation_is_said(blocked_import: Callable[[str], None], capsys: Any) -> None:
    blocked_import("tensorrt_rtx")
    finding = rtx_finding(capsys)
    assert finding["status"] == "missing"
    assert "No module named 'tensorrt_rtx'" in finding["next_step"]
