"""Parts of LLaVA models: their tensors, and whole models of every tower and decoder, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_parts import MODELS, WINDOW, config_of
from PIL import Image
from tiny_llava import PHOTO, make_model, save_model
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtexport import Pipeline
from vtexport.build import build
from vtexport.errors import UsageError
from vtexport.models.registry import decoders, family_of, towers

LLAVA = family_of("llava", "")
PROMPT = "USER: <image>\nWhat is on the table? ASSISTANT:"
NEW_TOKENS = 32


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_transformers(name: str, tied: bool) -> None:
    """Names, shapes and order, as random checkpoints are written by."""
    config = config_of(name, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    spec = LLAVA.model_spec(config, Path())
    ties = {LLAVA.canonical_name(key): LLAVA.canonical_name(to) for key, to in model.all_tied_weights_keys.items()}
    assert spec.ties == ties
    wanted = {LLAVA.canonical_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(spec.shapes().items()) == [(key, shape) for key, shape in wanted.items() if key not in ties]


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and its bundle with an unpruned and a pruned plan."""
    folder = tmp_path_factory.mktemp("parts")
    model = make_model(config_of(request.param))
    checkpoint = save_model(model, folder / "checkpoint")
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    settings["patch_size"] = model.config.vision_config.patch_size
    (checkpoint / "processor_config.json").write_text(json.dumps(settings))
    build(str(checkpoint), folder / "b", method="none")
    build(str(checkpoint), folder / "b", method="prunesid", keep=16)
    return model, folder


def generated(model: Any, checkpoint: Path) -> list[int]:
    """New tokens of transformers' greedy `generate()`."""
    processor = LlavaProcessor.from_pretrained(checkpoint, local_files_only=True)
    given = processor(images=Image.open(PHOTO).convert("RGB"), text=PROMPT, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return found[given["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("dialect", ["modern", "classic"])
def test_answers_are_generates(built: tuple[Any, Path], dialect: str) -> None:
    model, folder = built
    wanted = generated(model, folder / "checkpoint")
    answer = Pipeline.open(folder / "b", "none", dialect=dialect).generate(
        PHOTO, PROMPT, max_new_tokens=NEW_TOKENS, raw_prompt=True
    )
    assert answer.token_ids == wanted
    assert len(answer.token_ids) > 4


def test_features_and_logits_are_pytorchs(built: tuple[Any, Path]) -> None:
    """The tower's features as the build measured them, and the logits behind the prompt."""
    model, folder = built
    pipeline = Pipeline.open(folder / "b", "none")
    check = pipeline.bundle.manifest.self_check
    assert check is not None
    assert check.features_error is not None
    assert check.features_error < 1e-5
    prompt = pipeline._prompts.read(PROMPT, raw=True)
    found = pipeline.stages.prefill(pipeline.encode(PHOTO), prompt, 1).logits
    processor = LlavaProcessor.from_pretrained(folder / "checkpoint", local_files_only=True)
    given = processor(images=Image.open(PHOTO).convert("RGB"), text=PROMPT, return_tensors="pt")
    given["pixel_values"] = torch.from_numpy(pipeline.stages.preprocess(PHOTO).pixel_values)
    with torch.no_grad():
        wanted = model(**given).logits[0, -1].numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


def test_a_pruned_plan_keeps_its_budget(built: tuple[Any, Path]) -> None:
    _, folder = built
    answer = Pipeline.open(folder / "b", "prunesid-16").generate(PHOTO, "What is this?", max_new_tokens=4)
    assert answer.visual_tokens == 16
    assert len(set(answer.keep_indices)) == 16


def test_methods_inside_a_language_model_with_windows_are_refused(tmp_path: Path) -> None:
    checkpoint = save_model(make_model(config_of("clip and mistral")), tmp_path / "checkpoint")
    with pytest.raises(UsageError, match=f"fastv prunes inside .* sliding window of {WINDOW} tokens"):
        build(str(checkpoint), tmp_path / "b", method="fastv", keep=24)


def test_features_of_several_layers(tmp_path: Path) -> None:
    """Side by side in the order of the list, as transformers joins them; the connector is as wide as all of them."""
    config = config_of("clip and qwen2", vision_feature_layer=[-2, 2, -1])
    model = make_model(config)
    checkpoint = save_model(model, tmp_path / "checkpoint")
    build(str(checkpoint), tmp_path / "b", method="none")
    build(str(checkpoint), tmp_path / "b", method="prunesid", keep=16)
    with pytest.raises(UsageError, match=r"nuwa compares features of one layer's width, .* of layers 3, 2, 4"):
        build(str(checkpoint), tmp_path / "b", method="nuwa", keep=16)
    wanted = generated(model, checkpoint)
    answer = Pipeline.open(tmp_path / "b", "none").generate(PHOTO, PROMPT, max_new_tokens=NEW_TOKENS, raw_prompt=True)
    assert answer.token_ids == wanted
    assert Pipeline.open(tmp_path / "b", "prunesid-16").encode(PHOTO).embeddings.shape == (1, 16, 72)


def test_every_part_is_in_a_model_here() -> None:
    assert {tower for tower, _ in MODELS.values()} == set(towers())
    assert {text["model_type"] for _, text in MODELS.values()} == set(decoders())
