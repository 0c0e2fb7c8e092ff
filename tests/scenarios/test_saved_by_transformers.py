"""Checkpoints that earlier versions of transformers saved: they build and answer as those versions did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import PHOTO

from vtexport.build import build
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.models.registry import family_of
from vtexport.runtime.pipeline import Pipeline

LLAVA = family_of("llava", "")

SAVED = Path(__file__).parents[1] / "data" / "saved_by_transformers"
VERSIONS = ("4.51.3", "5.0.0", "5.5.4")


def answer(version: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((SAVED / version / "answer.json").read_text())
    return said


def test_each_has_its_version() -> None:
    assert {folder.name for folder in SAVED.iterdir() if folder.is_dir()} == set(VERSIONS)
    for version in VERSIONS:
        assert json.loads((SAVED / version / "config.json").read_text())["transformers_version"] == version


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensor_binds(version: str) -> None:
    checkpoint = open_checkpoint(str(SAVED / version))
    assert set(checkpoint.tensors) == set(LLAVA.model_spec(checkpoint.config, SAVED).shapes())


@pytest.mark.parametrize("version", VERSIONS)
def test_bundles_answer_as_then(version: str, tmp_path: Path) -> None:
    then = answer(version)
    bundle = build(str(SAVED / version), tmp_path / "bundle", method="none", precision="fp32").folder
    now = Pipeline.open(bundle).generate(PHOTO, then["question"], max_new_tokens=len(then["token_ids"]))
    assert now.prompt_tokens == len(then["input_ids"])
    assert now.token_ids == then["token_ids"]
