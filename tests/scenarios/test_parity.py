"""The bundle against the PyTorch model: vision features, visual block, logits and greedy tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_outputs import vision_outputs
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.build import build
from vtexport.models.registry import family_of
from vtexport.pruning import select
from vtexport.runtime.pipeline import Pipeline

LLAVA = family_of("llava", "")

pytestmark = pytest.mark.long

PROMPT = "What is on the table?"
NEW_TOKENS = 32


def load(folder: Path) -> Any:
    """The model as transformers loads it, in float32, with attention maps to read."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def pytorch_inputs(folder: Path, image: Image.Image) -> Any:
    """Inputs that transformers' own processor makes of the image and the question."""
    read = processor(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = read.apply_chat_template(messages, add_generation_prompt=True)
    return read(images=image, text=text, return_tensors="pt")


@torch.no_grad()
def pytorch_vision(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Penultimate features [1, 1 + T, D] and the CLS token's attention summed over heads [1, T]."""
    out = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    return out.hidden_states[-2], out.attentions[-2][:, :, 0, 1:].sum(1)


@torch.no_grad()
def pytorch_pruned(
    model: Any, inputs: Any, keep: int, **parameters: Any
) -> tuple[Any, torch.Tensor, torch.Tensor, Any]:
    """Selection by the reference, visual block, logits of the prefill and greedy tokens of the PyTorch model."""
    features, scores = pytorch_vision(model, inputs["pixel_values"])
    rows = features if parameters.get("cls_slot", True) else features[:, 1:]
    selection = select("prunesid", rows.numpy(), scores.numpy(), keep=keep, **parameters)
    block = model.model.multi_modal_projector(torch.from_numpy(selection.kept_features))
    ids = inputs["input_ids"][0]
    at = torch.nonzero(ids == model.config.image_token_index).flatten()
    embed = model.get_input_embeddings()
    embeds = torch.cat([embed(ids[None, : at[0]]), block, embed(ids[None, at[-1] + 1 :])], dim=1)
    logits = model(inputs_embeds=embeds).logits[0, -1]
    tokens = model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return selection, block, logits, tokens[0].tolist()


def prefill_logits(pipeline: Pipeline, image: Image.Image) -> np.ndarray:
    """The logits that the pipeline's first token is chosen from."""
    seen = []
    prefill = pipeline._language_model.prefill

    def recorded(*args: Any) -> np.ndarray:
        seen.append(prefill(*args))
        return seen[-1]

    pipeline._language_model.prefill = recorded  # type: ignore[method-assign]
    pipeline.generate(image, PROMPT, max_new_tokens=1)
    pipeline._language_model.prefill = prefill  # type: ignore[method-assign]
    return seen[0]


def assert_same_answer(folder: Path, bundle: Path, plan: str, keep: int, **parameters: Any) -> None:
    image = Image.open(PHOTO)
    model, inputs = load(folder), pytorch_inputs(folder, image)
    pipeline = Pipeline.open(bundle, plan)
    selection, block, logits, tokens = pytorch_pruned(model, inputs, keep, **parameters)
    visual = pipeline.encode(image)
    assert visual.keep_indices.tolist() == selection.keep_indices[0].tolist()
    np.testing.assert_allclose(visual.embeddings, block.numpy(), rtol=0, atol=2e-5 * float(block.abs().max()))
    np.testing.assert_allclose(
        prefill_logits(pipeline, image), logits.numpy(), rtol=0, atol=2e-5 * float(logits.abs().max())
    )
    answer = pipeline.generate(image, PROMPT, max_new_tokens=NEW_TOKENS)
    assert answer.token_ids == tokens
    assert len(set(tokens)) > 4, "a model that repeats itself proves little"


def test_vision_features_and_scores(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    pixels = pytorch_inputs(tiny_checkpoint, Image.open(PHOTO))["pixel_values"]
    features, scores = pytorch_vision(load(tiny_checkpoint), pixels)
    got = vision_outputs(Pipeline.open(tiny_bundle, "prunesid-16"), pixels.numpy())
    np.testing.assert_allclose(got["features"], features.numpy(), rtol=0, atol=2e-5 * float(features.abs().max()))
    np.testing.assert_allclose(got["scores"], scores.numpy(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("keep", [16, 32])
def test_pruned_answer(tiny_checkpoint: Path, tiny_bundle: Path, keep: int) -> None:
    assert_same_answer(tiny_checkpoint, tiny_bundle, f"prunesid-{keep}", keep)


def test_mini_at_full_size(mini_bundle: Path, mini_cache: Path) -> None:
    """576 tokens to 64, tied head, exact GELU in the tower."""
    folder = next(path for path in (mini_cache / "random-weights").iterdir() if path.is_dir())
    assert_same_answer(folder, mini_bundle, "prunesid-64", 64)


def test_no_pruning_equals_the_untouched_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = build(str(tiny_checkpoint), tmp_path / "whole", method="none").folder
    image = Image.open(PHOTO)
    inputs = pytorch_inputs(tiny_checkpoint, image)
    tokens = load(tiny_checkpoint).generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    answer = Pipeline.open(bundle).generate(image, PROMPT, max_new_tokens=NEW_TOKENS)
    assert answer.token_ids == tokens[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.keep_indices == list(range(64))


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ({"attention_bias": True, "mlp_bias": True}, {}),
        ({"tie_word_embeddings": True}, {"order": "raster"}),
        ({"num_key_value_heads": 6, "head_dim": 12}, {"cls_slot": False}),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, "factor": 4.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
            {"center": "feature", "groups": 6},
        ),
    ],
    ids=["biases", "tied head, raster order", "no grouped queries, no CLS slot", "llama3 rope, paper's centring"],
)  # fmt: skip
def test_other_decoders_and_parameters(text: dict[str, Any], parameters: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model(make_model(make_config(**text), seed=3), tmp_path / "checkpoint")
    bundle = build(str(folder), tmp_path / "bundle", keep=20, options=parameters)
    assert_same_answer(folder, bundle.folder, bundle.manifest.plans[0].name, 20, **parameters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights are widened exactly, so the bundle equals the model that transformers loads in float32."""
    folder = save_model(make_model(make_config(), seed=4).to(dtype), tmp_path / "checkpoint", max_shard_size="150KB")
    bundle = build(str(folder), tmp_path / "bundle", keep=16)
    assert len(list((bundle.folder / "onnx" / "weights").iterdir())) > 1, "the checkpoint should be sharded"
    assert_same_answer(folder, bundle.folder, "prunesid-16", 16)


def test_the_hubs_names_and_shards(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Tensors named as in the hub's LLaVA repositories, in three shards; the answer is the same."""
    folder = tmp_path / "hub"
    shutil.copytree(tiny_checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = load_file(tiny_checkpoint / "model.safetensors")
    renamed = {LLAVA.hub_name(LLAVA.canonical_name(name)): tensor for name, tensor in stored.items()}
    assert set(renamed) != set(stored)
    names = sorted(renamed)
    shards = {f"model-{i + 1:05d}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in shards.items():
        save_file({name: renamed[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    bundle = build(str(folder), tmp_path / "bundle", keep=16)
    answers = [
        Pipeline.open(at, "prunesid-16").generate(PHOTO, PROMPT, max_new_tokens=NEW_TOKENS)
        for at in (bundle.folder, tiny_bundle)
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].keep_indices == answers[1].keep_indices


def test_a_conversation_of_two_turns(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    image = Image.open(PHOTO)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
        {"role": "user", "content": [{"type": "text", "text": "What colour?"}]},
    ]
    read = processor(tiny_checkpoint)
    text = read.apply_chat_template(messages, add_generation_prompt=True)
    inputs = read(images=image, text=text, return_tensors="pt")
    *_, tokens = pytorch_pruned(load(tiny_checkpoint), inputs, 16)
    answer = Pipeline.open(tiny_bundle, "prunesid-16").generate(image, messages, max_new_tokens=NEW_TOKENS)
    assert answer.token_ids == tokens
