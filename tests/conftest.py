"""Checkpoints and bundles that the tests share: small, seeded, made once a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtexport

PACKAGED_MINI = Path(vtexport.__file__).parent / "checkpoint" / "packaged" / "mini"
PHOTO = Path(__file__).parents[1] / "docs" / "images" / "coffee.jpg"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
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
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "class_embedding" in name:
                # A tied head reads the residual stream, where a large embedding would only ever find itself again.
                parameter.normal_(0, 0.1 if config.tie_word_embeddings else 1)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 0.1)
    return model


def add_text_files(folder: Path, image_size: int = 112) -> None:
    """Tokenizer, template and image settings beside a checkpoint's weights."""
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


@pytest.fixture(scope="session")
def photo() -> Path:
    return PHOTO


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    return make_model(make_config())


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_model, tmp_path_factory.mktemp("checkpoints") / "tiny-llava")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans: prunesid-16 and prunesid-32. Tests must not change it; see `bundle_copy`."""
    from vtexport.build import build

    return build(str(tiny_checkpoint), tmp_path_factory.mktemp("bundles") / "tiny", keep=[16, 32]).folder


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def mini_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mini's seeded weights are generated, apart from the user's own cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mini_bundle(mini_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vtexport.build import build

    return build("mini", tmp_path_factory.mktemp("bundles") / "mini", keep=64, cache_dir=mini_cache).folder


@pytest.fixture
def noisy_image() -> np.ndarray:
    """[H, W, 3] uint8, not square, different everywhere."""
    return np.random.default_rng(5).integers(0, 256, (150, 201, 3), dtype=np.uint8)


@pytest.fixture
def blocked_import(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look uninstalled."""
    import builtins

    real = builtins.__import__

    def block(package: str) -> None:
        def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", guarded)

    return block
