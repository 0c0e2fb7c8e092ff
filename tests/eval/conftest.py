"""A small bundle with an unpruned plan, and datasets whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtexport.runtime.pipeline import Pipeline

QUESTIONS = ["What is this?", "Is there a cup?", "What colour is it?"]
NEW_TOKENS = 5  # that the tests ask for

WriteLines = Callable[..., Path]


def image(number: int) -> np.ndarray:
    """[H, W, 3] uint8, not square, different everywhere."""
    return np.random.default_rng(number).integers(0, 256, (90, 130, 3), dtype=np.uint8)


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Writes a JSONL file from objects and texts, with three images beside it."""

    def write(*lines: Any, name: str = "data.jsonl") -> Path:
        for number in range(3):
            Image.fromarray(image(number)).save(tmp_path / f"{number}.png")
        shown = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_text("\n".join(shown) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def unpruned_answers(eval_bundle: Path) -> list[list[str]]:
    """Answers of the unpruned plan for each image of `write_lines` to each of `QUESTIONS`."""
    pipeline = Pipeline.open(eval_bundle, "none")
    return [
        [pipeline.generate(image(number), question, max_new_tokens=NEW_TOKENS).text for question in QUESTIONS]
        for number in range(3)
    ]


@pytest.fixture
def known_answers(unpruned_answers: list[list[str]], write_lines: WriteLines) -> Path:
    """Nine questions that the unpruned plan answers right, but for one in three."""
    lines = []
    for number, said in enumerate(unpruned_answers):
        for place, (question, text) in enumerate(zip(QUESTIONS, said, strict=True)):
            answer = "something else" if place == 2 else text.strip() or "-"
            lines.append({"image": f"{number}.png", "question": question, "answer": answer, "id": f"{number}-{place}"})
    return write_lines(*lines)
