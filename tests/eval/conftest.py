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


@pytest.fixture(scope="session")
def eval_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans none, prunesid-8 and prunesid-16; tests must not change it."""
    from vtexport.build import build

    folder = tmp_path_factory.mktemp("eval") / "tiny"
    build(str(tiny_checkpoint), folder, method="none")
    return build(str(tiny_checkpoint), folder, keep=[8, 16]).folder


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Writes a JSONL file from objects and texts, with three images beside it."""

    def write(*lines: Any, name: str = "data.jsonl") -> Path:
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (90, 130, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        shown = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_text("\n".join(shown) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def known_answers(eval_bundle: Path, write_lines: WriteLines) -> Path:
    """Nine questions that the unpruned plan answers right, but for one in three."""
    write_lines()
    pipeline = Pipeline.open(eval_bundle, "none")
    lines = []
    for image in range(3):
        for number, question in enumerate(QUESTIONS):
            said = pipeline.generate(write_lines().parent / f"{image}.png", question, max_new_tokens=NEW_TOKENS).text
            answer = "something else" if number == 2 else said.strip() or "-"
            lines.append({"image": f"{image}.png", "question": question, "answer": answer, "id": f"{image}-{number}"})
    return write_lines(*lines)
