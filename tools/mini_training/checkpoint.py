"""The checkpoint that training goes on from, and the trained model in the layout of Hugging Face's LLaVA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import make_mini_tokenizer
import torch
from torch import Tensor

from mini_training import words
from mini_training.batches import PATCH
from mini_training.model import WIDTH, Mini

PACKAGED = make_mini_tokenizer.MINI_FOLDER
VISION, PROJECTOR, LANGUAGE = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
_OUTSIDE = {
    "vision.patch.weight": VISION + "embeddings.patch_embedding.weight",
    "vision.cls": VISION + "embeddings.class_embedding",
    "vision.positions": VISION + "embeddings.position_embedding.weight",
    "vision.pre_layernorm.weight": VISION + "pre_layrnorm.weight",  # spelled so there
    "vision.pre_layernorm.bias": VISION + "pre_layrnorm.bias",
    "embedding": LANGUAGE + "embed_tokens.weight",
    "norm": LANGUAGE + "norm.weight",
}
_VISION_PART = {"q_proj": "self_attn.", "k_proj": "self_attn.", "v_proj": "self_attn.", "out_proj": "self_attn.",
                "fc1": "mlp.", "fc2": "mlp."}  # fmt: skip
_LANGUAGE_PART = {"q_proj": "self_attn.", "k_proj": "self_attn.", "v_proj": "self_attn.", "o_proj": "self_attn.",
                  "gate_proj": "mlp.", "up_proj": "mlp.", "down_proj": "mlp."}  # fmt: skip


def hub_name(name: str) -> str:
    """The name in transformers' LlavaForConditionalGeneration of one of `Mini`'s parameters."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if name.startswith("linear_"):
        return PROJECTOR + name
    vision = name.startswith("vision.")
    _, number, part = name.removeprefix("vision.").split(".", 2)
    module = part.split(".")[0]
    if vision:
        return f"{VISION}encoder.layers.{number}.{_VISION_PART.get(module, '')}{part}"
    ending = "" if part.endswith((".weight", ".bias")) else ".weight"
    return f"{LANGUAGE}layers.{number}.{_LANGUAGE_PART.get(module, '')}{part}{ending}"


def to_hub(model: Mini) -> dict[str, Tensor]:
    """transformers' names and shapes, float32; the tower's last norm, which LLaVA does not use, is the identity."""
    tensors = {hub_name(n): p.detach().clone() for n, p in model.named_parameters() if not n.startswith("heads.")}
    patch = VISION + "embeddings.patch_embedding.weight"
    tensors[patch] = tensors[patch].view(WIDTH, 3, PATCH, PATCH)
    tensors[VISION + "post_layernorm.weight"] = torch.ones(WIDTH)
    tensors[VISION + "post_layernorm.bias"] = torch.zeros(WIDTH)
    return tensors


def load_hub(model: Mini, folder: Path) -> None:
    """Takes the weights of a folder that `export` wrote. The heads that training alone has stay as they are."""
    from transformers import LlavaForConditionalGeneration

    tensors = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("heads."):
                parameter.copy_(tensors[hub_name(name)].reshape(parameter.shape))


def export(model: Mini, folder: Path) -> None:
    """Writes the model as float16 with its configuration, tokenizer, template and image settings."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    settings = json.loads((PACKAGED / "config.json").read_text(encoding="utf-8"))
    settings["text_config"]["vocab_size"] = words.SIZE
    settings["dtype"] = settings["text_config"]["dtype"] = settings["vision_config"]["dtype"] = "float16"
    hub = LlavaForConditionalGeneration(LlavaConfig(**settings))
    missing, unexpected = hub.load_state_dict(to_hub(model), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"names do not match transformers': missing {missing}, unexpected {unexpected}")
    folder.mkdir(parents=True, exist_ok=True)
    hub.to(torch.float16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    make_mini_tokenizer.main(folder)
    for name in ("chat_template.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json"):
        if folder.resolve() != PACKAGED:
            shutil.copy(PACKAGED / name, folder / name)


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint in one step: whatever ends the process, the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(content, unfinished)
    unfinished.replace(path)
