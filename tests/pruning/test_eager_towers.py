"""Eager pruning of models with other towers and several feature layers, beside bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_parts import MODELS, config_of
from tiny_llava import make_model, save_model
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtexport.build import build
from vtexport.errors import UsageError
from vtexport.pruning import apply
from vtexport.runtime.pipeline import Pipeline

PROMPT = "What is on the table?"
LAYERS: dict[str, Any] = {"one layer": -2, "two layers": [-2, 2]}


def config(tower: str, layers: str) -> Any:
    name = next(name for name, (kind, _) in MODELS.items() if kind.startswith(tower))
    return config_of(name, vision_feature_layer=LAYERS[layers])


@pytest.fixture(scope="module", params=[(tower, layers) for tower in ("clip", "siglip") for layers in LAYERS], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model(config(*request.param)), tmp_path_factory.mktemp("towers") / "checkpoint")


@pytest.mark.parametrize("method", ["prunesid", "divprune"])
def test_kept_rows_and_tokens_are_the_bundles(checkpoint: Path, method: str, photo: Path, tmp_path: Path) -> None:
    """Of a method with attention as a signal, all patches' where there is no CLS, and of one behind the projector."""
    bundle = build(str(checkpoint), tmp_path / "bundle", method=method, keep=16)
    answer = Pipeline(bundle).generate(photo, PROMPT, max_new_tokens=8)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(photo)}, {"type": "text", "text": PROMPT}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with apply(model, method=method, keep=16) as applied:
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        kept = applied.selections[0].keep_indices[0]
    np.testing.assert_array_equal(np.asarray(kept), answer.keep_indices)
    assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == answer.token_ids


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_what_compares_one_layers_features_refuses_several(tower: str) -> None:
    model = make_model(config(tower, "two layers"))
    with pytest.raises(UsageError, match=r"nuwa compares features of one layer's width, .* layers 3, 2; give another"):
        apply(model, method="nuwa", keep=32)


def test_a_strategy_that_does_not_go_with_the_tower_is_refused() -> None:
    model = make_model(config("siglip", "one layer"))
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(UsageError, match=r"strategy='default' of a siglip_vision_model cannot be pruned; 'full' can"):
        apply(model, method="prunesid", keep=16)
