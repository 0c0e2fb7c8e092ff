"""The scene of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
import render_scene
from PIL import Image

from vtexport.eval.scenes import held_out_scenes


def test_the_scene_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render_scene.main(tmp_path / "new" / "scene.png", 1)
    *_, scene = held_out_scenes(2)
    assert Image.open(tmp_path / "new" / "scene.png").tobytes() == scene.image.tobytes()
    shown = capsys.readouterr().out
    assert all(f"{question.question} {question.answer}" in shown for question in scene.questions)
