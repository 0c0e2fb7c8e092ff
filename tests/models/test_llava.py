"""The LLaVA family: names in every layout, configurations read as transformers reads them, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import make_config

from vtexport.errors import InputError, UsageError
from vtexport.models.registry import family_of

LLAVA = family_of("llava", "")

NAMES = {
    "vision_tower.encoder.layers.0.self_attn.q_proj.weight": [
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
    ],
    "language_model.layers.31.mlp.up_proj.weight": [
        "language_model.model.layers.31.mlp.up_proj.weight",
        "model.language_model.layers.31.mlp.up_proj.weight",
    ],
    "language_model.embed_tokens.weight": ["language_model.model.embed_tokens.weight"],
    "lm_head.weight": ["language_model.lm_head.weight"],
    "multi_modal_projector.linear_1.bias": ["model.multi_modal_projector.linear_1.bias"],
}


@pytest.mark.parametrize("canonical", NAMES)
def test_every_layout_has_one_canonical_name(canonical: str) -> None:
    for stored in [canonical, *NAMES[canonical]]:
        assert LLAVA.canonical_name(stored) == canonical
    assert LLAVA.hub_name(canonical) in [canonical, *NAMES[canonical]]


def test_names_of_the_whole_model_survive_the_round_trip() -> None:
    shapes = LLAVA.model_spec(make_config(), Path()).shapes()
    assert len(shapes) == 105
    assert all(LLAVA.canonical_name(LLAVA.hub_name(name)) == name for name in shapes)


def write(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_fields_left_out_take_transformers_defaults(tmp_path: Path) -> None:
    """The content of the hub's config.json of LLaVA-1.5-7B, and no more."""
    settings = {
        "model_type": "llava", "image_token_index": 32000, "pad_token_id": 32001,
        "text_config": {
            "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
        },
    }  # fmt: skip
    config = LLAVA.load_config(write(tmp_path, settings))
    spec = LLAVA.model_spec(config, tmp_path)
    assert (spec.vision.tokens, spec.vision.hidden_size, spec.vision.feature_layer) == (576, 1024, 23)
    decoder = spec.decoder
    assert (
        decoder.num_hidden_layers,
        decoder.hidden_size,
        decoder.num_attention_heads,
        decoder.num_key_value_heads,
        decoder.head_dim,
    ) == (32, 4096, 32, 32, 128)
    assert (decoder.vocab_size, decoder.max_position_embeddings) == (32064, 4096)
    assert len(spec.shapes()) == 391 + 295


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        ({"vision_feature_layer": [-2, -6]}, r"vision_feature_layer = \[-2, -6\].* takes -4 to -1, or 1 to 4"),
        ({"vision_feature_layer": []}, r"vision_feature_layer = \[\]"),
        ({"vision_feature_layer": -9}, r"vision_feature_layer = -9.* takes -4 to -1, or 1 to 4"),
        ({"vision_feature_layer": 0}, r"vision_feature_layer = 0.* takes -4 to -1, or 1 to 4"),
        ({"vision_feature_layer": [5]}, r"vision_feature_layer = \[5\].* takes -4 to -1, or 1 to 4"),
        ({"image_token_index": -200}, "image_token_index = -200.* takes an id of the vocabulary"),
        ({"vision_config": {"model_type": "clip_vision_model", "patch_size": 500}}, "vision_config.patch_size = 500"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 10**6}}, "num_hidden_layers = 1000000"),
        (
            {"text_config": {"model_type": "llama", "sliding_window": 8}},
            "text_config.sliding_window = 8.* takes none, or",
        ),
        ({"text_config": {"model_type": "llama", "attention_chunk_size": 8}}, "text_config.attention_chunk_size = 8"),
        (
            {
                "text_config": {
                    "model_type": "llama",
                    "num_hidden_layers": 2,
                    "layer_types": ["full_attention", "linear_attention"],
                }
            },
            r"text_config.layer_types = .*takes full_attention",
        ),
        ({"text_config": {"model_type": "llama", "is_causal": False}}, "text_config.is_causal = False"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 0}}, "text_config.num_hidden_layers = 0"),
        ({"vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 0}}, "vision_config.num_hidden_l"),
        ({"text_config": {"model_type": "llama", "rms_norm_eps": float("nan")}}, "text_config.rms_norm_eps = nan"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act = 'relu'"),
        (
            {"text_config": {"model_type": "gemma2"}},
            "text_config.model_type = 'gemma2'.* takes llama, mistral, phi3, qwen2, qwen3",
        ),
        (
            {"vision_config": {"model_type": "dinov2"}},
            "vision_config.model_type = 'dinov2'.* takes clip_vision_model, sig",
        ),
        (
            {
                "text_config": {
                    "model_type": "llama",
                    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                }
            },
            "rope_type = 'dynamic'",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings = {**json.loads(make_config().to_json_string(use_diff=False)), **change}
    with pytest.raises(UsageError, match=message):
        LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings)), tmp_path)


def test_the_implementation_of_attention_is_no_matter(tmp_path: Path) -> None:
    """A configuration may ask for one that is not installed here, and answers do not depend on it."""
    settings = json.loads(make_config().to_json_string(use_diff=False))
    whole = LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings)), tmp_path).shapes()
    asked = {"attn_implementation": "flash_attention_2", "_attn_implementation": "flash_attention_2"}
    settings = settings | asked | {"text_config": settings["text_config"] | asked}
    assert LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings)), tmp_path).shapes() == whole


def test_a_window_of_all_positions_drops_nothing(tmp_path: Path) -> None:
    settings = json.loads(make_config().to_json_string(use_diff=False))
    plain = LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings)), tmp_path).decoder
    settings["text_config"] |= {"sliding_window": settings["text_config"]["max_position_embeddings"]}
    windowed = LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings)), tmp_path).decoder
    assert replace(windowed, inv_freq=plain.inv_freq) == plain


def test_a_list_of_one_feature_layer_is_that_layer(tmp_path: Path) -> None:
    settings = json.loads(make_config().to_json_string(use_diff=False))
    specs = [
        LLAVA.model_spec(LLAVA.load_config(write(tmp_path, settings | {"vision_feature_layer": layer})), tmp_path)
        for layer in (-2, [-2], 3, [3])
    ]
    assert [spec.vision for spec in specs] == [specs[0].vision] * 4
    assert specs[0].vision.feature_layer == 3


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_as_claimed_and_as_stored(tmp_path: Path, tied: bool) -> None:
    spec = LLAVA.model_spec(make_config(tie_word_embeddings=tied), tmp_path)
    assert (spec.decoder.head == spec.decoder.embedding) == tied
    stored = spec.with_head("a", "b")
    assert (stored.decoder.head, stored.decoder.embedding) == ("a", "b")
    assert stored.with_head(spec.decoder.head, spec.decoder.embedding).decoder == spec.decoder


def test_unknown_family() -> None:
    assert family_of("llava", "config.json") is LLAVA
    with pytest.raises(InputError, match="model_type 'bert', which vtexport cannot export; supported: llava"):
        family_of("bert", "config.json")
