"""The verbs prove and validate, and the proof that a build makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.cli.prove import SWITCH
from vtexport.validate import read_report


def test_prove_and_validate(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    assert main(["validate", str(bundle), "--quiet"]) == 3
    said = capsys.readouterr().err
    assert f"run `vtexport prove {bundle} --checkpoint" in said or f"`vtexport prove {bundle} --checkpoint" in said
    given = ["prove", str(bundle), "--checkpoint", str(tiny_checkpoint), "--plan", "prunesid-16"]
    assert main([*given, "--prompt", "Why?", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["plans"] == ["prunesid-16"]
    assert "about 0.8 GB of memory and" in captured.err
    assert main(["validate", str(bundle), "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "prunesid-16  -       1 pass  14 pass   64 of 64" in shown
    assert "not compared: prunesid-32, no proof was made of it" in shown
    report = read_report(bundle / "reports" / "validate.json")
    assert report.command.startswith("vtexport")
    assert report.backend.startswith("ONNX Runtime ")
    assert report.machine["cores"]
    assert set(report.proof_versions["prunesid-16"]) >= {"torch", "transformers", "vtexport"}
    assert main(["inspect", str(bundle), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "\nproof of prunesid-16 (2 images, 1 prompt, " in shown
    assert "of the proof with the SHA-256 that proof.json states" in shown


def test_a_failure_ends_with_1_and_one_sentence(proven_copy: Path, tmp_path: Path, capsys: Any) -> None:
    embedding = open_bundle(proven_copy).manifest.text.embedding
    with (proven_copy / embedding.file).open("r+b") as file:
        file.seek(embedding.offset)
        file.write(bytes(4 * 72 * 200))
    output = tmp_path / "report.json"
    given = ["validate", str(proven_copy), "--plan", "none", "--threads", "1", "--quiet", "-o", str(output)]
    assert main([*given, "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "vtexport validation"
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("vtexport: logits of case 1 of the plan none and ")
    assert str(output) in line
    assert read_report(output).failed
    assert not (proven_copy / "reports").exists()
    assert main(given) == 1
    assert "fail: none, pipeline, case 1, logits " in capsys.readouterr().out


def test_damage_ends_with_4(proven_copy: Path, capsys: Any) -> None:
    (proven_copy / "proof" / "image-1.png").write_bytes(b"x")
    assert main(["inspect", str(proven_copy), "--verify"]) == 4
    assert "image-1.png is damaged: it has 1 bytes" in capsys.readouterr().err
    assert main(["inspect", str(proven_copy), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proof"] is None
    assert "image-1.png is damaged" in found["unusable_proof"][0]
    assert main(["validate", str(proven_copy)]) == 4
    assert "image-1.png is damaged" in capsys.readouterr().err


def test_a_build_makes_a_proof_where_it_takes_little(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    given = ["build", "--model", str(tiny_checkpoint), "--keep", "16"]
    folder = tmp_path / "by-itself"
    assert main([*given, "-o", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["plans"] == ["prunesid-16"]
    assert (folder / "proof" / "proof.json").is_file()

    monkeypatch.setattr("vtexport.cli.prove.MOST_SECONDS", 0.5)
    folder = tmp_path / "too-long"
    assert main([*given, "-o", str(folder)]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: no proof")]
    assert "it would take about" in note
    assert f"`vtexport prove {folder} --checkpoint {tiny_checkpoint}` makes one" in note
    assert not (folder / "proof").exists()


def test_a_build_without_pytorch(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    monkeypatch.setattr("vtexport.proof.reference.find_spec", lambda name: None)
    given = ["build", "--model", str(tiny_checkpoint), "--method", "none", "-o", str(tmp_path / "b")]
    assert main([*given, "--proof"]) == 3
    assert "PyTorch is not installed" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main(given) == 0
    assert "note: no proof was recorded, because PyTorch is not installed; `vtexport prove" in capsys.readouterr().err
    assert main([*given, "--no-proof"]) == 0
    assert "no proof" not in capsys.readouterr().err
