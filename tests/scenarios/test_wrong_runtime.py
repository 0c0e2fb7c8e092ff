"""A runtime that computes wrongly is found by the proof, where nothing else holds it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import ROOT, environment, install, lowest, requirements

pytestmark = pytest.mark.long

SCRIPT = ROOT / "tests" / "support" / "validate_unchecked.py"


def validated(bundle: Path, dialect: str, tmp_path: Path) -> dict[str, Any]:
    """By ONNX Runtime 1.23.0, whose Attention mixes up heads that share keys; the version check is bypassed."""
    minor = sys.version_info[1]
    pins = lowest(requirements(("", "cpu"), minor))
    env = environment(minor, [f"{name}=={version}" for name, version in pins.items()])
    older = tmp_path / "older"
    install(env, ["onnxruntime==1.23.0"], "--no-deps", "--target", str(older))
    around = {"PYTHONPATH": f"{older}:{ROOT}", "VTEXPORT_NATIVE": "0"}
    return json.loads(env.run(SCRIPT, bundle, "prunesid-16", dialect, cwd=tmp_path, **around))


def test_wrong_attention_is_found(proven_bundle: Path, tmp_path: Path) -> None:
    said = validated(proven_bundle, "modern", tmp_path)
    assert said["backend"] == "ONNX Runtime 1.23.0"
    failed = {check["what"] for check in said["checks"] if check["verdict"] == "fail"}
    assert {"logits", "last logits", "tokens"} == failed
    worst = max(check["measured"] / check["bound"] for check in said["checks"] if check["what"] == "logits")
    assert worst > 1000


def test_its_right_graphs_pass(proven_bundle: Path, tmp_path: Path) -> None:
    said = validated(proven_bundle, "classic", tmp_path)
    assert {check["verdict"] for check in said["checks"]} == {"pass"}
