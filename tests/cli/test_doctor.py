"""`vtexport doctor` on ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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
        (
            "1.23.0",
            "float32 by their classic graphs, float16 by their classic graphs",
            "modern graphs are left out in float32: its Attention is wrong where several heads share keys",
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


def test_a_bundle_is_judged_before_it_is_tried(tiny_bundle: Path, capsys: Any) -> None:
    assert main(["doctor", str(tiny_bundle), "--json"]) == 0
    said = [each["what"] for each in json.loads(capsys.readouterr().out)["findings"]]
    graphs, memory, trial = (
        next(number for number, what in enumerate(said) if begin in what)
        for begin in ("backend onnxruntime takes", "memory, estimated", f"{tiny_bundle} answers (prunesid-16: 16 vis")
    )
    assert graphs < memory < trial


def test_what_comes_before_a_bundle_that_cannot_be_opened(tmp_path: Path, capsys: Any) -> None:
    assert main(["doctor", str(tmp_path)]) == 4
    said = capsys.readouterr()
    assert "telemetry: vtexport has none" in said.out
    assert "holds no manifest.json" in said.err


def test_backends_and_why_one_cannot_be_opened() -> None:
    said = {each.what: each for each in findings.backends()}
    assert said["backend onnxruntime on cpu can be opened"].status == "ok"
    cuda = said["backend onnxruntime on cuda"]
    assert (cuda.ability, cuda.status) == ("run on a GPU", "missing")
    assert "has no CUDAExecutionProvider" in str(cuda.next_step)
    assert {"backend tensorrt: vtexport neither builds nor runs its engines yet"} < set(said)


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("10.3.0", "TensorRT 10.3.0 is that of orin-jetpack-6.2"),
        ("10.16.2.10", "TensorRT 10.16.2.10 is that of orin-jetpack-7.2"),
        ("10.30.1", "TensorRT 10.30.1 is that of no target: "),
        ("8.6.1", "TensorRT 8.6.1 is that of no target: "),
    ],
)
def test_the_version_of_tensorrt(version: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    (finding,) = findings.tensorrt()
    assert finding.what.startswith(what)
    assert (finding.next_step is None) == ("no target" not in finding.what)
    assert ("10.3 (orin-jetpack-6.2)" in finding.what) == ("no target" in finding.what)


def test_no_tensorrt_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert findings.tensorrt() == []


def test_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    finding = findings.telemetry()
    assert "ONNX Runtime's is off (ORT_DISABLE_TELEMETRY is 1)" in finding.what
    assert "huggingface_hub's is on" in finding.what
    assert finding.next_step == "set HF_HUB_DISABLE_TELEMETRY=1 to turn it off"
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    finding = findings.telemetry()
    assert "ONNX Runtime's is as ORT_DISABLE_TELEMETRY=0 has it" in finding.what
    assert "off (DO_NOT_TRACK is set)" in finding.what
    assert finding.next_step is None


def test_the_hubs_own_switches_are_those_that_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY as off; print(off)"
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "True\n", name
