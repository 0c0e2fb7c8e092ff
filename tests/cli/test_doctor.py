"""`vtexport doctor` on ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest

from vtexport.cli import doctor
from vtexport.cli.main import main
from vtexport.runtime import findings


def rtx_finding(capsys: Any) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = [finding for finding in findings if finding["ability"] == "build RTX engines"]
    return finding


@pytest.mark.parametrize(
    ("version", "runs", "step"),
    [
        ("1.31.1", "float32 by their modern graphs, float16 by their modern graphs", None),
        (
            "1.23.2",
            "float32 by their modern graphs, float16 by their classic graphs",
            "modern graphs are left out in float16: its Attention is wrong where several heads share keys",
        ),
        ("1.22.1", "float32 by their classic graphs, float16 by their classic graphs", "it does not know opset 23"),
    ],
)
def test_what_a_version_of_onnxruntime_runs(
    version: str, runs: str, step: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", version)
    finding = findings.onnxruntime()
    assert finding.status == "ok"
    assert finding.what.startswith(f"ONNX Runtime {version} (")
    assert finding.what.endswith(f"runs bundles: {runs}")
    assert (finding.next_step is None) if step is None else (step in finding.next_step)


def test_an_onnxruntime_that_runs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.17.3")
    assert main(["doctor", "--json"]) == 3
    said = capsys.readouterr()
    findings = json.loads(said.out)
    assert not findings["can_run_bundles"]
    (finding,) = [each for each in findings["findings"] if each["what"].startswith("ONNX Runtime")]
    assert (finding["ability"], finding["status"]) == ("run bundles", "missing")
    assert "1.17.3 cannot run bundles, because it does not read ONNX IR version 10; run pip" in finding["next_step"]
    assert "bundles cannot be run here" in said.err


@pytest.mark.parametrize(
    ("gpu", "running"),
    [("missing", "running them takes an NVIDIA GPU, and none is seen"), ("ok", "an NVIDIA GPU is there to run them")],
)
def test_the_version_and_whether_engines_run_here(
    gpu: Any, running: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(findings, "gpu", lambda: findings.Finding("run on a GPU", gpu, "NVIDIA GPU"))
    finding = rtx_finding(capsys)
    assert finding["status"] == "ok"
    assert finding["what"] == f"TensorRT-RTX {tensorrt_rtx.__version__} builds engines here; {running}"


@pytest.mark.parametrize(("value", "said"), [("", "not tried here"), ("1", "only cached models are used")])
def test_the_hub_is_not_said_to_answer(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert said in doctor.hub().what


def test_without_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = rtx_finding(capsys)
    assert (finding["status"], finding["what"]) == ("missing", "TensorRT-RTX")
    assert "run pip install 'vtexport[tensorrt-rtx]' to build engines here" in finding["next_step"]


def test_a_broken_installation_is_said(blocked_import: Callable[[str], None], capsys: Any) -> None:
    blocked_import("tensorrt_rtx")
    finding = rtx_finding(capsys)
    assert finding["status"] == "missing"
    assert "No module named 'tensorrt_rtx'" in finding["next_step"]
