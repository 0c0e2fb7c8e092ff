"""Checkpoints in other layouts than transformers', recognised by their own names, each with the one step that helps.

The original LLaVA code (github.com/haotian-liu/LLaVA and what descends from it) keeps the language model's fields at
the top of config.json beside its own `mm_*` keys, names its projector `model.mm_projector` and leaves the vision tower
in a repository of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.errors import InputError, quoted
from vtexport.models.neighbours import NEIGHBOURS

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
LORA_LEFTOVERS = "non_lora_trainables.bin"  # what the original code's LoRA training saves with the adapter
PROJECTOR_ALONE = "mm_projector.bin"

# Without which transformers takes sizes of its own, those of a 7B model
_PARTS = dict.fromkeys(("llava", "vipllava"), ("text_config", "vision_config"))
_ORIGINAL_CLASS = re.compile(r"Llava\w*For(?:CausalLM|SequenceClassification)")
_ORIGINAL_TENSOR = re.compile(r"(?:^|\.)(?:mm_projector|vision_tower\.vision_tower)\.")
_LAYER = re.compile(r"(?:model\.)?layers\.\d+\.")
_CONVERTER = "convert_llava_weights_to_hf.py of transformers 4"
_REPOSITORIES = {"7b": "llava-hf/llava-1.5-7b-hf", "13b": "llava-hf/llava-1.5-13b-hf"}
_WIDTHS = {4096: "7b", 5120: "13b"}
_LEARNT_PROMPTS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"
)  # fmt: skip
_MERGE = "merge it first with peft: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new)"


def refuse_other_layouts(path: Path, content: dict[str, Any]) -> None:
    """Refuses a config.json that does not describe a whole vision-language model in transformers' layout.

    A `model_type` that nothing more is known of is left to `vtexport.models.family_of`.

    Raises:
        InputError: naming the layout, and what to give instead.
    """
    sign = _original(content)
    if sign is not None:
        raise InputError(
            f"{path} is in the layout of the original LLaVA code ({sign}), not transformers'; {_instead(path, content)}"
        )
    model_type = content.get("model_type")
    if isinstance(model_type, str) and model_type in _PARTS:
        for part in _PARTS[model_type]:
            if not isinstance(content.get(part), dict) or not content[part]:
                raise InputError(
                    f"{path} has no {part}, in whose place transformers would take the sizes of a 7B model; "
                    "fetch the file again from the model's repository, or save it with the model's save_pretrained()"
                )
        return
    if isinstance(model_type, str) and model_type in NEIGHBOURS:
        return
    if code := _code_of_its_own(content):
        raise InputError(
            f"{path} describes a model whose code is in its repository (auto_map: {quoted(code, limit=80)}), which "
            "vtexport does not run; give LLaVA-1.5 in transformers' own layout, such as llava-hf/llava-1.5-7b-hf"
        )
    alone = next((name for name in _architectures(content) if name.endswith(("ForCausalLM", "LMHeadModel"))), None)
    if alone is not None:
        raise InputError(
            f"{path} describes a language model alone ({quoted(alone, limit=60)}), without vision tower and projector; "
            "give the whole LLaVA, or put a fine-tuned language model back into it (model.model.language_model, "
            "model.lm_head) and save that"
        )


def refuse_other_names(names: Iterable[str], folder: Path) -> None:
    """Refuses tensors whose names show another layout; an index of shards is enough to know them.

    Raises:
        InputError: naming the layout and the first tensor.
    """
    listed = list(names)
    original = next((name for name in listed if _ORIGINAL_TENSOR.search(name)), None)
    if original is not None:
        raise InputError(
            f"{folder} names its tensors as the original LLaVA code does ({quoted(original, limit=100)}); give the "
            f"same model's -hf repository, such as {_REPOSITORIES['7b']}, or convert it with {_CONVERTER}"
        )
    layer = next((name for name in listed if _LAYER.match(name)), None)
    if layer is not None and not any("vision_tower." in name or "multi_modal_projector." in name for name in listed):
        raise InputError(
            f"{folder} holds the tensors of a language model alone ({quoted(layer, limit=100)}), without vision tower "
            "and projector; give the whole LLaVA, or put the language model back into it and save that"
        )


def why_no_config(folder: Path) -> str:
    """The sentence for a folder without config.json."""
    left = next((name for name in (LORA_LEFTOVERS, PROJECTOR_ALONE) if (folder / name).is_file()), None)
    if left is not None:
        return (
            f"{folder} holds {left}, a part that the original LLaVA code trained, and no whole model; merge it with "
            f"that code's scripts/merge_lora_weights.py or load it there, then convert the result with {_CONVERTER}"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return adapter_sentence(folder, ADAPTER_CONFIG)
    if (folder / MANIFEST_NAME).is_file() and (folder / "onnx").is_dir():
        return f"{folder} is a bundle; give the checkpoint that it was made of, and the bundle as -o/--output"
    inside = sorted(path.parent.name for path in folder.glob("checkpoint-*/config.json"))
    if inside:
        return f"{folder} has no config.json but holds checkpoints of a training; give one, such as {inside[-1]}"
    return (
        f"{folder} has no config.json, so it is no checkpoint in Hugging Face's layout; "
        "give the folder that save_pretrained() wrote or that was downloaded from the hub"
    )


def adapter_sentence(folder: Path, name: str) -> str:
    """The sentence for an adapter that was trained on a model and not merged into it."""
    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError):  # whatever it is, it is refused
        kind = None
    if kind in _LEARNT_PROMPTS:
        return (
            f"{folder} holds an adapter that is a learnt prompt ({kind}), which vtexport does not apply and which "
            f"cannot be merged into a model; move {quoted(name, limit=60)} away to build the model without it"
        )
    return f"{folder} holds an adapter ({quoted(name, limit=60)}), which vtexport does not apply; {_MERGE}"


def _original(content: dict[str, Any]) -> str | None:
    """The tensor that shows the original code's layout, or None."""
    model_type = content.get("model_type")
    if isinstance(model_type, str) and model_type.startswith("llava_") and model_type not in NEIGHBOURS:
        return f"model_type {quoted(model_type, limit=40)}"
    if any(isinstance(content.get(part), dict) for part in _PARTS["llava"]) or model_type in NEIGHBOURS:
        return None
    own = next((name for name in _architectures(content) if _ORIGINAL_CLASS.fullmatch(name)), None)
    return own or next((key for key in content if key.startswith("mm_")), None)


def _instead(path: Path, content: dict[str, Any]) -> str:
    """The step that helps with a checkpoint of the original code."""
    if (path.parent / LORA_LEFTOVERS).is_file() or (path.parent / ADAPTER_CONFIG).is_file():
        return f"merge its adapter with that code's scripts/merge_lora_weights.py, then convert it with {_CONVERTER}"
    called = f"{content.get('_name_or_path')} {path.parent.resolve().name}".lower()
    if re.search(r"1\.6|next", called) or content.get("image_aspect_ratio") == "anyres":
        return f"it is LLaVA-1.6, which vtexport cannot export yet; LLaVA-1.5 it can: {_REPOSITORIES['7b']}"
    if content.get("model_type") not in (None, "llava", "llava_llama"):
        return f"vtexport exports LLaVA-1.5 with Llama or Vicuna in transformers' layout, such as {_REPOSITORIES['7b']}"
    named = next((size for size in ("13b", "7b") if size in called), None)
    width = content.get("hidden_size")
    size = named or (_WIDTHS.get(width) if isinstance(width, int) else None) or "7b"
    return f"give the same model's -hf repository, {_REPOSITORIES[size]}, or convert your own with {_CONVERTER}"


def _architectures(content: dict[str, Any]) -> list[str]:
    named = content.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _code_of_its_own(content: dict[str, Any]) -> str | None:
    """The first class in `auto_map`, as `module.Class`."""
    named = content.get("auto_map")
    classes = named.values() if isinstance(named, dict) else ()
    return next((name for name in classes if isinstance(name, str)), None)
