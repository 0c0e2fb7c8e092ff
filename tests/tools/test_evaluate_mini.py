"""Scoring of answers about scenes, and the scene of the demo."""

from __future__ import annotations

from pathlib import Path

import evaluate_mini
import pytest
import render_scene
from PIL import Image

from vtexport.eval.questions import Question, box_text
from vtexport.eval.scenes import held_out_scenes

BOX = (0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("[0.10, 0.20, 0.50, 0.60]", True),
        (" [0.10, 0.20, 0.50, 0.42]", True),
        ("[0.10, 0.20, 0.50, 0.38]", False),
        ("[0.50, 0.60, 0.10, 0.20]", False),
        ("[0.60, 0.70, 0.80, 0.90]", False),
        ("[0.10, 0.20, 0.50]", False),
        ("here: [0.10, 0.20, 0.50, 0.60]", False),
        ("", False),
    ],
)
def test_boxes_count_from_half_an_overlap(said: str, right: bool) -> None:
    assert evaluate_mini.is_right(Question("grounding", "Where?", box_text(BOX), BOX), said) is right


@pytest.mark.parametrize(
    ("said", "right"), [(" red", True), ("red", True), ("red.", False), ("Red", False), ("", False)]
)
def test_words_count_letter_for_letter(said: str, right: bool) -> None:
    assert evaluate_mini.is_right(Question("colour", "What colour?", "red"), said) is right


def test_overlap() -> None:
    assert evaluate_mini.overlap(BOX, BOX) == pytest.approx(1)
    assert evaluate_mini.overlap((0.0, 0.0, 0.2, 0.1), (0.1, 0.0, 0.3, 0.1)) == pytest.approx(1 / 3)
    assert evaluate_mini.overlap((0.0, 0.0, 0.1, 0.1), (0.1, 0.0, 0.3, 0.1)) == 0


def test_intervals_are_wilsons() -> None:
    assert evaluate_mini.interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert evaluate_mini.interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert evaluate_mini.interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_the_scene_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render_scene.main(tmp_path / "new" / "scene.png", 1)
    *_, scene = held_out_scenes(2)
    assert Image.open(tmp_path / "new" / "scene.png").tobytes() == scene.image.tobytes()
    shown = capsys.readouterr().out
    assert all(f"{question.question} {question.answer}" in shown for question in scene.questions)
