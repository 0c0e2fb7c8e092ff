"""Files and configuration keys beside a model that change answers, or that people expect to: each refused or told of.

What transformers does about each is its own code's (`from_pretrained` of models, `integrations/peft.py`,
`generation/utils.py`); the rules below say what of it a bundle has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vtexport.checkpoint.layouts import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LORA_LEFTOVERS,
    PROJECTOR_ALONE,
    adapter_sentence,
)
from vtexport.checkpoint.safetensors_index import SHARD_INDEX, SINGLE_FILE
from vtexport.errors import InputError, quoted

_NAMED_AT_MOST = 3
_MAX_JSON_BYTES = 100_000_000


_WEIGHTS = ("safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "npz")


@dataclass(frozen=True)
class _Rule:
    """Names at the top of a checkpoint's folder (shell patterns, lower case), and why those found are not used."""

    patterns: tuple[str, ...]
    why: str | None  # None where nothing is to be said


# The first rule that matches a name counts.
_RULES = (
    _Rule(
        ("training_args*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "trainer_state*"),
        None,
    ),
    _Rule(
        (PROJECTOR_ALONE, "projector*.bin", "mm_projector*"),
        "a projector that was trained apart, which transformers does not read either; merge it into the model where it "
        "is not in there already",
    ),
    _Rule(("consolidated*",), "the weights in another layout, which transformers does not read either"),
    _Rule(
        ("pytorch_model*.bin", "pytorch_model*.json", "tf_model*.h5", "flax_model*.msgpack", "*.gguf", "*.ggml"),
        "weights in another format; transformers too takes the safetensors files",
    ),
    _Rule(
        ("model.*.safetensors", "model.*-of-*.safetensors", "model.safetensors.index.*.json"),
        "a variant of the weights, which transformers reads only where it is named (variant=)",
    ),
    _Rule(
        ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_strategy.json"),
        "it tells how weights were quantised, and what is stored decides",
    ),
    _Rule(
        tuple(f"*{word}*.{suffix}" for word in ("lora", "adapter") for suffix in (*_WEIGHTS, "json")),
        "named like an adapter; merge it into the model if it belongs to it",
    ),
    _Rule(
        tuple(f"*.{suffix}" for suffix in _WEIGHTS),
        "named like weights, which transformers does not read either",
    ),
)
_CODE = ("modeling_", "configuration_", "processing_", "image_processing_", "tokenization_")
_TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
_CUSTOM_GENERATE = "custom_generate"
_CLASSES = {"llava": "LlavaForConditionalGeneration", "vipllava": "VipLlavaForConditionalGeneration"}
_ORIGINAL_KEYS = ("image_aspect_ratio", "image_grid_pinpoints", "use_mm_proj", "tune_mm_mlp_adapter")


def look_over(folder: Path) -> list[str]:
    """Notes about what stands beside a model in `folder` and is not in a bundle of it; one sentence each.

    Raises:
        InputError: an adapter stands there, which from_pretrained applies where peft is installed, or what the
            original LLaVA code's LoRA training leaves.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    _refuse(folder, names)
    config = _read_object(folder / "config.json")
    notes = [*_about_config(folder / "config.json", config), *_about_weights(folder, names)]
    read = _weight_files(folder, config)
    for rule in _RULES:
        found = [name for name in names if name not in read and _rule_of(name) is rule]
        if found and rule.why is not None:
            notes.append(f"{folder}: {_listed(found)} not used: {rule.why}")
    return notes + _about_folders(folder)


def _refuse(folder: Path, names: Iterable[str]) -> None:
    present = set(names)
    for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
        if name in present:
            raise InputError(adapter_sentence(folder, name))
    if LORA_LEFTOVERS in present:
        raise InputError(
            f"{folder} holds {LORA_LEFTOVERS}, weights that the original LLaVA code trained beside an adapter and that "
            "transformers does not read; merge both with that code's scripts/merge_lora_weights.py, or move the file "
            "away if the model has them already"
        )


def _about_config(path: Path, config: dict[str, Any]) -> list[str]:
    """Notes about keys of config.json that transformers passes over for a model class of its own."""
    notes = []
    own = _CLASSES.get(str(config.get("model_type")))
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if own is not None and classes and own not in classes:
        notes.append(
            f"{path} names the class {quoted(classes[0], limit=60)}, but its model_type is {config['model_type']}; "
            f"it is read as {own}, which model_type stands for"
        )
    original = [key for key in config if key.startswith("mm_") or key in _ORIGINAL_KEYS]
    if own is not None and original:
        notes.append(
            f"{path}: {_listed(original)}, of the original LLaVA code, {'is' if len(original) == 1 else 'are'} not "
            "read; transformers does not read such keys either"
        )
    if config.get("auto_map"):
        code = [name for name in _names(path.parent) if name.startswith(_CODE) and name.endswith(".py")]
        where = f" ({_listed(code)})" if code else ""
        notes.append(
            f"{path} names code of its own (auto_map){where}, which is not run; nor does transformers without "
            "trust_remote_code"
        )
    if isinstance(config.get("transformers_weights"), str):
        notes.append(
            f"{path} names the weights {quoted(config['transformers_weights'], limit=60)} (transformers_weights), "
            "which are taken, as by transformers"
        )
    return notes


def _about_weights(folder: Path, names: list[str]) -> list[str]:
    if SINGLE_FILE in names and SHARD_INDEX in names:
        return [f"{folder}: {SINGLE_FILE} is read and the shards of {SHARD_INDEX} are not, as in transformers"]
    return []


def _about_folders(folder: Path) -> list[str]:
    notes = []
    for name in _TEMPLATE_FOLDERS:
        templates = sorted(path.stem for path in (folder / name).glob("*.jinja"))
        if templates:
            notes.append(f"{folder / name}: {_listed(templates)}, further chat templates, not in the bundle")
    if (folder / _CUSTOM_GENERATE).is_dir():
        notes.append(
            f"{folder / _CUSTOM_GENERATE} is code for generate(), which is not run; nor does transformers without "
            "trust_remote_code"
        )
    adapters = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
    if adapters:
        notes.append(f"{folder}: {_listed(adapters)}, with an adapter inside, is not applied")
    return notes


def _rule_of(name: str) -> _Rule | None:
    lower = name.lower()
    return next((rule for rule in _RULES if any(fnmatch(lower, pattern) for pattern in rule.patterns)), None)


def _weight_files(folder: Path, config: dict[str, Any]) -> set[str]:
    """Files that hold the weights or say where they are: those that are read, and those noted of otherwise."""
    index = config.get("transformers_weights")
    index = index if isinstance(index, str) else SHARD_INDEX
    shards = _read_object(folder / index).get("weight_map") if index.endswith(".json") else None
    named = {name for name in shards.values() if isinstance(name, str)} if isinstance(shards, dict) else set()
    return {index, SINGLE_FILE, SHARD_INDEX, *named}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none: what must be readable is read, and refused, elsewhere."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(quoted(name, limit=80) for name in names[:_NAMED_AT_MOST]) + more
