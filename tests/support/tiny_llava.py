"""A LLaVA small enough to build in a second: its configuration, its weights and its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import make_mini_tokenizer

import vtexport

PACKAGED_MINI = Path(vtexport.__file__).parent / "checkpoint" / "packaged" / "mini"
PHOTO = Path(__file__).parents[2] / "docs" / "images" / "coffee.jpg"
TEXT_FILES = ("chat_template.jinja", "generation_config.json")
IMAGE_TOKEN_ID, VOCABULARY = 4, 272


def make_config(**text: Any) -> Any:
    """A LLaVA configuration of 8 x 8 = 64 visual tokens whose sizes all differ, so that a mix-up cannot go unseen."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14,
        projection_dim=48,
    )  # fmt: skip
    settings = {
        "hidden_size": 72, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**settings, **text}),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=64,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )


def make_model(config: Any, seed: int = 0) -> Any:
    """A model of that configuration whose activations stay lively and whose biases are not zero."""
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    return lively(LlavaForConditionalGeneration(config))


def lively(model: Any) -> Any:
    """The same of a model that is made already, by the next of PyTorch's random numbers."""
    import torch

    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "class_embedding" in name:
                # A tied head reads the residual stream, where a large embedding would only ever find itself again.
                parameter.normal_(0, 0.1 if model.config.tie_word_embeddings else 1)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 0.1)
    return model


def add_text_files(folder: Path, image_size: int = 112) -> None:
    """A tokenizer of bytes alone, which a small vocabulary holds; template and image settings."""
    make_mini_tokenizer.main(folder, whole=())
    for name in TEXT_FILES:
        shutil.copy(PACKAGED_MINI / name, folder / name)
    settings = (PACKAGED_MINI / "preprocessor_config.json").read_text().replace("336", str(image_size))
    (folder / "preprocessor_config.json").write_text(settings)
    shutil.copy(PACKAGED_MINI / "processor_config.json", folder / "processor_config.json")


def save_model(model: Any, folder: Path, **options: Any) -> Path:
    """A checkpoint folder as transformers writes it, with everything a build needs."""
    model.save_pretrained(folder, **options)
    add_text_files(folder, model.config.vision_config.image_size)
    return folder
