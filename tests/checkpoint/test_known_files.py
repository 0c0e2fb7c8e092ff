"""Files next to a model: refused, told of, or nothing worth a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_llava import write_repository

from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.known_files import look_over
from vtexport.checkpoint.resolve import open_checkpoint
from vtexport.errors import InputError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_whole_checkpoints_need_no_word(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert look_over(tiny_checkpoint) == []
    assert look_over(ALIASES["mini"].folder) == []
    assert look_over(write_repository(tmp_path / "llava-1.5-7b-hf")) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", r"holds an adapter \(adapter_config\.json\).*merge_and_unload\(\)\.save_pretrained"),
        ("adapter_model.safetensors", r"holds an adapter \(adapter_model\.safetensors\)"),
        ("adapter_model.bin", r"holds an adapter \(adapter_model\.bin\)"),
        ("non_lora_trainables.bin", r"holds non_lora_trainables\.bin.*merge_lora_weights\.py"),
    ],
)
def test_refused(saved_folder: Path, name: str, message: str) -> None:
    put(saved_folder, name)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(saved_folder))
    assert len(str(caught.value).replace(str(saved_folder), "")) < 300


def test_a_learnt_prompt_is_not_said_to_be_mergeable(saved_folder: Path) -> None:
    put(saved_folder, "adapter_model.safetensors")
    (saved_folder / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    with pytest.raises(InputError, match=r"a learnt prompt \(PREFIX_TUNING\).*move adapter_config.json away") as caught:
        look_over(saved_folder)
    assert "merge_and_unload" not in str(caught.value)


NOTED = {
    "pytorch_model.bin": "transformers too takes the safetensors",
    "pytorch_model-00001-of-00002.bin": "transformers too takes the safetensors",
    "model-Q4_K_M.gguf": "weights in another format",
    "consolidated.safetensors": "in another layout",
    "model.fp16.safetensors": "a variant of the weights",
    "quantize_config.json": "what is stored decides",
    "hf_quant_config.json": "what is stored decides",
    "mm_projector.bin": "a projector that was trained apart",
    "pytorch_lora_weights.safetensors": "named like an adapter",
    "my_adapter.pt": "named like an adapter",
    "ema.pth": "named like weights",
    "model-00001-of-00009.safetensors": "named like weights",
    "adapter/adapter_config.json": "with an adapter inside",
    "chat_templates/tools.jinja": "tools, further chat templates",
    "additional_chat_templates/rag.jinja": "rag, further chat templates",
    "custom_generate/generate.py": "is code for generate()",
}


@pytest.mark.parametrize("name", NOTED)
def test_noted(saved_folder: Path, name: str) -> None:
    [note] = look_over(put(saved_folder, name))
    assert NOTED[name] in note
    assert name.split("/")[0].lower() in note.lower()
    assert len(note.replace(str(saved_folder), "")) < 300


def test_what_training_leaves_needs_no_word(saved_folder: Path) -> None:
    names = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "README.md")
    assert look_over(put(saved_folder, *names)) == []


def test_many_files_of_a_kind_are_one_short_note(saved_folder: Path) -> None:
    [note] = look_over(put(saved_folder, *(f"{number}-{'x' * 200}.pt" for number in range(50))))
    assert "and 47 more" in note
    assert len(note.replace(str(saved_folder), "")) < 400


def test_the_single_file_and_an_index(saved_folder: Path) -> None:
    weight_map = {"a": "model-00001-of-00001.safetensors"}
    (saved_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    [note] = look_over(put(saved_folder, "model-00001-of-00001.safetensors"))
    assert "model.safetensors is read and the shards of model.safetensors.index.json are not" in note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mm_vision_tower": "x", "image_aspect_ratio": "pad"}, "mm_vision_tower, image_aspect_ratio, of the original"),
        ({"architectures": ["LlavaNextForConditionalGeneration"]}, "names the class LlavaNextForConditionalGeneration"),
        ({"auto_map": {"AutoModel": "modeling_own.Own"}}, r"code of its own (auto_map) (modeling_own.py)"),
        ({"transformers_weights": "model.safetensors"}, "names the weights model.safetensors"),
    ],
)
def test_keys_of_the_configuration(
    saved_folder: Path, edit_json: Callable[..., None], changes: dict[str, Any], said: str
) -> None:
    edit_json(saved_folder / "config.json", **changes)
    [note] = look_over(put(saved_folder, "modeling_own.py"))
    assert said in note
    notes: list[str] = []
    open_checkpoint(str(saved_folder), notify=notes.append)
    assert notes == [note]


def test_the_weights_that_the_configuration_names_are_taken(saved_folder: Path, edit_json: Callable[..., None]) -> None:
    """As transformers' from_pretrained does."""
    (saved_folder / "model.safetensors").rename(saved_folder / "best.safetensors")
    put(saved_folder, "model.safetensors")
    edit_json(saved_folder / "config.json", transformers_weights="best.safetensors")
    checkpoint = open_checkpoint(str(saved_folder), notify=lambda note: None)
    assert checkpoint.weight_files == ((saved_folder / "best.safetensors").resolve(),)
    for name in ("../best.safetensors", "best.bin", "none.safetensors", "x" * 999 + ".safetensors", "a\n.safetensors"):
        edit_json(saved_folder / "config.json", transformers_weights=name)
        with pytest.raises(InputError, match="transformers_weights") as caught:
            open_checkpoint(str(saved_folder), notify=lambda note: None)
        assert str(caught.value).isprintable()


def test_damaged_json_beside_a_model_raises_nothing_here(saved_folder: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        (saved_folder / name).write_bytes(b"\xff{")
    assert len(look_over(saved_folder)) == 1
