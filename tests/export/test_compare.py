"""The comparison of the written tower's features with PyTorch's, which a build makes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_parts import MODELS, config_of
from safetensors.torch import load_file, save_file
from tiny_llava import make_model, save_model

from vtexport.build import BuildProgress, build
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.errors import VtexportError
from vtexport.export import compare
from vtexport.models.registry import towers


@pytest.fixture(params=["clip_vision_model", "siglip_vision_model"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = next(name for name, (tower, _) in MODELS.items() if tower == request.param)
    return save_model(make_model(config_of(name)), tmp_path / "checkpoint")


def stored_as(checkpoint: Path, dtype: torch.dtype) -> None:
    file = checkpoint / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reference_is_the_modules_own(checkpoint: Path, dtype: torch.dtype) -> None:
    """Computed from mapped weights block by block: the same numbers as of the module that from_pretrained makes."""
    from transformers import LlavaForConditionalGeneration

    stored_as(checkpoint, dtype)
    opened = open_checkpoint(str(checkpoint))
    tower = opened.family.model_spec(opened.config, checkpoint).vision
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, tower.image_size, tower.image_size)).astype(np.float32)
    found = compare.pytorch_features(tower, opened.config.vision_config, opened.tensors, pixels)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        states = model.model.vision_tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(found, states[tower.feature_layer].numpy())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_build_records_the_error(checkpoint: Path, precision: str, tmp_path: Path) -> None:
    stages: list[str] = []
    report = BuildProgress(stages.append)
    bundle = build(str(checkpoint), tmp_path / "bundle", method="none", precision=precision, report=report)
    check = bundle.manifest.self_check
    assert check is not None
    assert check.features_error is not None
    assert 0 < check.features_error < compare.BOUNDS[bundle.manifest.precision] / 4, "bounds have room"
    assert "comparing the vision tower's features with PyTorch's" in stages
    unchecked = build(str(checkpoint), tmp_path / "unchecked", method="none", precision=precision, check=False)
    assert unchecked.manifest.self_check is not None
    assert unchecked.manifest.self_check.features_error is None


def test_a_tower_written_wrongly_stops_the_build(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = towers()["clip_vision_model"].kind
    right = kind._block

    def without_the_last(self: Any, g: Any, stream: Any, number: int, *rest: Any) -> Any:
        after, projected = right(self, g, stream, number, *rest)  # type: ignore[attr-defined]
        return (stream if number == self.feature_layer - 1 else after), projected

    monkeypatch.setattr(kind, "_block", without_the_last)
    with pytest.raises(VtexportError, match=r"features differ from PyTorch's by [0-9.e-]+ of their size.*report"):
        build(str(tiny_checkpoint), tmp_path / "bundle", method="none")
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_build_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    notes: list[str] = []
    bundle = build(str(tiny_checkpoint), tmp_path / "bundle", method="none", report=BuildProgress(note=notes.append))
    assert "PyTorch is not installed, so the vision tower's features were not compared" in notes
    assert bundle.manifest.self_check is not None
    assert bundle.manifest.self_check.features_error is None


def test_layers_behind_the_features_may_be_missing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    opened = open_checkpoint(str(copy))
    tower = opened.family.model_spec(opened.config, copy).vision
    behind = f"encoder.layers.{tower.feature_layer}."
    file = copy / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if behind not in name}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, {"format": "pt"})
    bundle = build(str(copy), tmp_path / "bundle", method="none")
    assert bundle.manifest.self_check is not None
    assert bundle.manifest.self_check.features_error is not None
    assert bundle.manifest.self_check.features_error < 1e-5
