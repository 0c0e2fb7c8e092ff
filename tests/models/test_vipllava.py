"""ViP-LLaVA against transformers: tensors, features behind the normed connector, logits, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_parts import TEXT, VISION
from PIL import Image
from tiny_llava import IMAGE_TOKEN_ID, PHOTO, lively, save_model
from transformers import LlavaProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration

from vtexport import Pipeline
from vtexport.build import build
from vtexport.errors import UsageError
from vtexport.models.registry import family_of
from vtexport.proof.prove import prove

FAMILY = family_of("vipllava", "")
PROMPT = "###Human: <image>\nWhat is on the table?###Assistant:"
LAYERS = (-1, -3, 1)


def config(**changes: Any) -> VipLlavaConfig:
    vision = {**VISION, "model_type": "clip_vision_model"}
    text = {**TEXT, "model_type": "llama"}
    layers = {"vision_feature_layer": LAYERS}
    return VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN_ID, image_seq_length=64,
        **{**layers, **changes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("vip")
    torch.manual_seed(3)
    model = lively(VipLlavaForConditionalGeneration(config()))
    checkpoint = save_model(model, folder / "checkpoint")
    for method, keep in (("none", None), ("prunesid", 16), ("divprune", 16)):
        build(str(checkpoint), folder / "b", method=method, keep=keep)
    return model, folder


def test_tensors_are_transformers() -> None:
    with torch.device("meta"):
        model = VipLlavaForConditionalGeneration(config())
    wanted = {FAMILY.canonical_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(FAMILY.model_spec(config(), Path()).shapes().items()) == list(wanted.items())


def test_rows_logits_and_tokens_are_pytorchs(built: tuple[Any, Path]) -> None:
    model, folder = built
    pipeline = Pipeline.open(folder / "b", "none")
    processor = LlavaProcessor.from_pretrained(folder / "checkpoint", local_files_only=True)
    given = processor(images=Image.open(PHOTO).convert("RGB"), text=PROMPT, return_tensors="pt")
    given["pixel_values"] = torch.from_numpy(pipeline.stages.preprocess(PHOTO).pixel_values)
    visual = pipeline.encode(PHOTO)
    with torch.no_grad():
        rows = model.model.get_image_features(pixel_values=given["pixel_values"]).pooler_output
        logits = model(**given).logits[0, -1].numpy()
        tokens = model.generate(**given, max_new_tokens=32, do_sample=False)[0, given["input_ids"].shape[1] :].tolist()
    np.testing.assert_allclose(visual.embeddings, rows.numpy(), atol=2e-4 * float(rows.abs().max()))
    found = pipeline.stages.prefill(visual, pipeline._prompts.read(PROMPT, raw=True), 1).logits
    np.testing.assert_allclose(found, logits, atol=2e-3 * np.abs(logits).max())
    assert pipeline.generate(visual, PROMPT, max_new_tokens=32, raw_prompt=True).token_ids == tokens
    assert len(tokens) > 4


@pytest.mark.parametrize("plan", ["prunesid-16", "divprune-16"])
def test_kept_rows_are_rows_of_all(built: tuple[Any, Path], plan: str) -> None:
    """A kept row goes through the norm and the connector like any other."""
    _, folder = built
    every = Pipeline.open(folder / "b", "none").encode(PHOTO).embeddings[0]
    kept = Pipeline.open(folder / "b", plan).encode(PHOTO)
    alone = kept.keep_indices >= 0
    if plan.startswith("divprune"):
        assert alone.all()
        assert len(set(kept.keep_indices.tolist())) == 16
        np.testing.assert_allclose(kept.embeddings[0], every[kept.keep_indices], atol=1e-4)
    else:  # merges nothing but has CLS among its rows
        np.testing.assert_allclose(kept.embeddings[0][alone], every[kept.keep_indices[alone]], atol=1e-4)


def test_what_transformers_would_cut_a_row_of_is_refused(tmp_path: Path) -> None:
    """SigLIP has no CLS row, and the model takes the first row away whatever it is."""
    given = config()
    given.vision_config = {**VISION, "model_type": "siglip_vision_model"}
    given = VipLlavaConfig(**given.to_dict())
    with pytest.raises(UsageError, match=r"vision_feature_select_strategy = 'default'.*it takes full"):
        FAMILY.model_spec(given, tmp_path)


def test_a_proof_is_refused_in_one_sentence(built: tuple[Any, Path]) -> None:
    _, folder = built
    with pytest.raises(UsageError, match=r"is of the family vipllava, .* PyTorch side .* llava"):
        prove(folder / "b", str(folder / "checkpoint"))
