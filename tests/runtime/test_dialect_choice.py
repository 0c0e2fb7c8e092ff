"""The graphs that a pipeline loads follow ONNX Runtime's version, in every verb that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import MissingDependencyError, UsageError
from vtexport.eval.answering import Settings, graphs_here
from vtexport.runtime.pipeline import Pipeline

PLAN = "prunesid-16"


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the installed ONNX Runtime look like another version."""
    return lambda text: monkeypatch.setattr(onnxruntime, "__version__", text)


def loaded(pipeline: Pipeline) -> set[str]:
    """The dialects of the graphs that are loaded, by the files' names."""
    sessions = [pipeline.stages._vision.session, *pipeline._language_model._segments]
    return {session.path.name.split(".")[-2] for session in sessions}


@pytest.mark.parametrize(("text", "dialect"), [("1.22.1", "classic"), ("1.23.0", "classic"), ("1.23.1", "modern")])
def test_the_first_right_one_is_loaded(tiny_bundle: Path, version: Any, text: str, dialect: str) -> None:
    version(text)
    pipeline = Pipeline.open(tiny_bundle, PLAN)
    assert loaded(pipeline) == {dialect}


def test_one_that_is_named_is_loaded_or_refused(tiny_bundle: Path, version: Any) -> None:
    assert loaded(Pipeline.open(tiny_bundle, PLAN, dialect="classic")) == {"classic"}
    version("1.23.0")
    with pytest.raises(UsageError, match="must not run the modern graphs in float32, because its Attention is wrong"):
        Pipeline.open(tiny_bundle, PLAN, dialect="modern")
    version("1.17.3")
    with pytest.raises(MissingDependencyError, match=r"1\.17\.3 cannot run bundles"):
        Pipeline.open(tiny_bundle, PLAN)


def test_evaluations_record_the_graphs_that_answer(tiny_bundle: Path, version: Any) -> None:
    bundle = open_bundle(tiny_bundle)
    assert "decoder_0.modern" in graphs_here(bundle, PLAN, Settings())
    version("1.23.0")
    assert "decoder_0.classic" in graphs_here(bundle, PLAN, Settings())


@pytest.mark.parametrize(
    "verb",
    [
        ["run", "--plan", PLAN, "--prompt", "x?", "--max-new-tokens", "1", "--image"],
        ["show", "--plan", PLAN, "--output", "kept.png", "--image"],
    ],
)
def test_verbs_say_why(
    verb: list[str], tiny_bundle: Path, photo: Path, version: Any, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [verb[0], str(tiny_bundle), *verb[1:], str(photo)]
    assert main(command) == 0
    assert "graphs answer" not in capsys.readouterr().err
    version("1.22.0")
    assert main(command) == 0
    note = "note: the classic graphs answer, because ONNX Runtime 1.22.0 must not run the modern ones: it does not know"
    assert note in capsys.readouterr().err


def test_eval_says_why(tiny_bundle: Path, version: Any, capsys: Any, tmp_path: Path) -> None:
    version("1.23.0")
    limits = ["--plan", PLAN, "--limit", "1", "--max-new-tokens", "1", "--output", str(tmp_path)]
    assert main(["eval", str(tiny_bundle), *limits]) == 0
    assert "note: the classic graphs answer, because ONNX Runtime 1.23.0" in capsys.readouterr().err
