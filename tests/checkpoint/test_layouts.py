"""Checkpoints of other layouts and half models: each recognised by its config.json, before anything else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.config_file import read_config_file
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.errors import InputError

# The fields of liuhaotian/llava-v1.5-7b's config.json that matter here.
ORIGINAL: dict[str, Any] = {
    "_name_or_path": "llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
PARTS = {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model"}}
ORIGINALS: dict[str, tuple[dict[str, Any], str]] = {
    "7b": ({}, r"\(LlavaLlamaForCausalLM\).*llava-hf/llava-1\.5-7b-hf, or convert"),
    "13b by its name": ({"_name_or_path": "lmsys/llava-v1.5-13b"}, r"llava-hf/llava-1\.5-13b-hf"),
    "13b by its width": ({"_name_or_path": "x", "hidden_size": 5120}, r"llava-hf/llava-1\.5-13b-hf"),
    "the later model_type": ({"model_type": "llava_llama"}, r"\(model_type llava_llama\).*llava-1\.5-7b-hf"),
    "keys alone": ({"architectures": None}, r"\(mm_hidden_size\).*llava-1\.5-7b-hf"),
    "1.6": ({"_name_or_path": "llava-v1.6-vicuna-7b"}, r"it is LLaVA-1\.6, which vtexport cannot export yet"),
    "1.6 by its tiling": ({"image_aspect_ratio": "anyres"}, r"it is LLaVA-1\.6"),
    "Mistral": ({"model_type": "llava_mistral"}, "exports LLaVA-1.5 with Llama or Vicuna"),
    "Qwen, with parts": ({"model_type": "llava_qwen", **PARTS}, "original LLaVA code"),
    "no model_type": ({"model_type": None}, "original LLaVA code"),
}


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.mark.parametrize(("change", "message"), ORIGINALS.values(), ids=ORIGINALS)
@pytest.mark.parametrize("weights", ["stored", "random"])
def test_the_original_codes_layout(tmp_path: Path, change: dict[str, Any], message: str, weights: Any) -> None:
    """Nothing of it is written as random weights either: it would be of a 7B's default sizes."""
    folder = write(tmp_path, ORIGINAL | change)
    for name in ("pytorch_model-00001-of-00002.bin", "mm_projector.bin", "model.safetensors"):
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(folder), weights=weights, cache_dir=tmp_path / "cache")
    assert "the layout of the original LLaVA code" in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["non_lora_trainables.bin", "adapter_config.json"])
def test_an_adapter_of_the_original_code(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"merge its adapter with that code's scripts/merge_lora_weights\.py"):
        read_config_file(write(tmp_path, ORIGINAL))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, {}, "llama"])
@pytest.mark.parametrize("weights", ["stored", "random"])
def test_both_parts_are_required(tmp_path: Path, part: str, value: Any, weights: Any) -> None:
    """transformers takes a 7B's sizes for a part that is left out."""
    folder = write(tmp_path, {"model_type": "llava", **PARTS, part: value})
    with pytest.raises(InputError, match=f"has no {part}, in whose place transformers"):
        open_checkpoint(str(folder), weights=weights, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"language model alone \(LlamaForCausalLM\)"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, r"language model alone \(GPT2LMHeadModel\)"),
        (
            {"model_type": "moondream1", "auto_map": {"AutoModelForCausalLM": "moondream.Moondream"}},
            r"whose code is in its repository \(auto_map: moondream\.Moondream\)",
        ),
        ({"model_type": "llava_next", **PARTS}, r"family LLaVA-NeXT \(LLaVA-1\.6\) \(model_type 'llava_next'\)"),
        ({"model_type": "llava_onevision", **PARTS}, "family LLaVA-OneVision"),
        ({"model_type": "video_llava", **PARTS}, "family Video-LLaVA"),
        ({"model_type": "qwen2_vl", "auto_map": {"AutoModel": "x.Y"}}, "family Qwen2-VL"),
        ({"model_type": "paligemma"}, "family PaliGemma .*cannot export yet; give LLaVA-1.5"),
        ({"model_type": "resnet"}, "model_type 'resnet', which vtexport cannot export; supported: llava"),
        ({"model_type": "x" * 9999}, "model_type 'xxx"),
        ({**PARTS}, "names no model_type"),
        ({"model_type": 3, **PARTS}, "names no model_type"),
    ],
)
def test_other_models(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(write(tmp_path, content)))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"holds an adapter .*merge_and_unload"),
        (["adapter_config.json", "non_lora_trainables.bin"], r"holds non_lora_trainables\.bin.*merge_lora_weights"),
        (["mm_projector.bin"], r"holds mm_projector\.bin, a part that the original LLaVA code trained"),
        (["checkpoint-500/config.json"], "holds checkpoints of a training; .*checkpoint-500"),
        ([], "no checkpoint in Hugging Face's layout"),
    ],
)
def test_folders_without_a_configuration(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=message) as caught:
        read_config_file(tmp_path)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300
