from __future__ import annotations

import json
import math
from typing import Any

import pytest

from vtexport.checkpoint.aliases import ALIASES, closest_alias, parameter_count
from vtexport.checkpoint.model_config import read_model_config

EXPECTED = {  # pinned, so that a packaged configuration does not change unnoticed
    "llava": 7_063_427_072,
    "llava-13b": 13_351_494_656,
    "mini": 2_909_312,
}


def meta_model(folder: Any) -> Any:
    import torch
    from transformers import AutoConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        return LlavaForConditionalGeneration(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("name", ALIASES)
def test_parameter_count_is_that_of_the_meta_model(name: str) -> None:
    alias = ALIASES[name]
    model = meta_model(alias.folder)
    assert parameter_count(alias) == sum(parameter.numel() for parameter in model.parameters()) == EXPECTED[name]


def test_7b_shapes() -> None:
    model = read_model_config(ALIASES["llava"].folder)
    assert model.file.dtype == "float16"
    names = {model.family.hub_name(name): shape for name, shape in model.shapes.items()}
    assert names["language_model.model.embed_tokens.weight"] == (32064, 4096)
    assert names["language_model.lm_head.weight"] == (32064, 4096)
    assert names["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert names["vision_tower.vision_model.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert names["vision_tower.vision_model.embeddings.position_embedding.weight"] == (577, 1024)
    assert names["multi_modal_projector.linear_1.weight"] == (4096, 1024)
    assert sum(1 for name in names if ".layers.31." in name) == 9
    assert sum(math.prod(shape) for shape in names.values()) == EXPECTED["llava"]


def test_values_that_shapes_do_not_show() -> None:
    config = read_model_config(ALIASES["llava"].folder).config
    assert config.image_token_index == 32000
    assert config.vision_feature_layer == -2
    assert config.text_config.rms_norm_eps == 1e-5
    assert config.text_config.max_position_embeddings == 4096
    assert config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert config.vision_config.hidden_act == "quick_gelu"
    wide = read_model_config(ALIASES["llava-13b"].folder).config.text_config
    assert (wide.hidden_size, wide.num_hidden_layers, wide.num_attention_heads, wide.intermediate_size) == (
        5120,
        40,
        40,
        13824,
    )


def test_every_alias_is_complete() -> None:
    for name, alias in ALIASES.items():
        assert alias.name == name
        assert alias.description
        assert json.loads((alias.folder / "config.json").read_text())["model_type"] == "llava"
    assert ALIASES["mini"].hub_id is None
    assert ALIASES["llava"].hub_id == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lava", "llava"), ("LLaVA", "llava"), ("llava13b", "llava-13b"), ("minni", "mini"), ("resnet50", None)],
)
def test_closest_alias(typed: str, meant: str | None) -> None:
    assert closest_alias(typed) == meant
