from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.binding import bind_tensors
from vtexport.checkpoint.model_config import ModelConfig, read_model_config
from vtexport.checkpoint.safetensors_index import DTYPE_BYTES, TensorEntry
from vtexport.errors import InputError

FOLDER = Path("somewhere")
Stored = dict[str, TensorEntry]


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    """mini, whose head is tied to its embedding."""
    return read_model_config(ALIASES["mini"].folder)


@pytest.fixture
def stored(model: ModelConfig) -> Stored:
    return {
        model.family.hub_name(name): TensorEntry(FOLDER / "model.safetensors", 0, 0, shape, "F32")
        for name, shape in model.shapes.items()
    }


HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
PROJECTOR = "multi_modal_projector.linear_1.bias"
LAYER = "language_model.model.layers.{}.mlp.up_proj.weight"


def test_hub_names_bind_in_model_order(model: ModelConfig, stored: Stored) -> None:
    bound = bind_tensors(dict(reversed(stored.items())), model, FOLDER)
    assert list(bound) == list(model.shapes)
    assert bound["language_model.embed_tokens.weight"] is stored[EMBEDDING]


def test_names_in_memory_bind_too(model: ModelConfig, stored: Stored) -> None:
    in_memory = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("vision_tower.vision_model.", "model.vision_tower.")
        .replace("multi_modal", "model.multi_modal"): entry
        for name, entry in stored.items()
    }
    assert not set(in_memory) & set(stored)
    assert bind_tensors(in_memory, model, FOLDER) == bind_tensors(stored, model, FOLDER)


def test_harmless_extras_are_passed_over(model: ModelConfig, stored: Stored) -> None:
    extras = (
        HEAD,
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
    )
    bound = bind_tensors(stored | dict.fromkeys(extras, stored[PROJECTOR]), model, FOLDER)
    assert list(bound) == list(model.shapes)


def _without(*names: str) -> Callable[[Stored], Stored]:
    return lambda stored: {name: entry for name, entry in stored.items() if name not in names}


def _with(**changes: Any) -> Callable[[Stored], Stored]:
    return lambda stored: stored | {PROJECTOR: replace(stored[PROJECTOR], **changes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(PROJECTOR), f"lacks the tensor {PROJECTOR} that its config.json asks for"),
        (
            _without(*map(LAYER.format, range(5))),
            r"lacks 5 tensors \(language_model.layers.0[^,]*, [^,]*, [^,]*, ...\)",
        ),
        (lambda stored: stored | {"what.is.this": stored[PROJECTOR]}, "holds the tensor what.is.this that the model"),
        (
            lambda stored: stored | {LAYER.format(layer): stored[PROJECTOR] for layer in (8, 9)},
            r"holds 2 tensors \(language_model.model.layers.8[^,]*, [^,]*layers.9[^,]*\) that the model",
        ),
        (_with(shape=(127,)), re.escape(f"({PROJECTOR}: [127], not [128])")),
        (_with(dtype="U8"), f"stores the tensor {PROJECTOR} as U8, and vtexport reads float16"),
        (
            lambda stored: stored | {"model." + PROJECTOR: stored[PROJECTOR]},
            f"one tensor under two names, {PROJECTOR} and model.{PROJECTOR}",
        ),
    ],
)
def test_refused(model: ModelConfig, stored: Stored, change: Callable[[Stored], Stored], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind_tensors(change(stored), model, FOLDER)
    assert str(caught.value).startswith("somewhere ")


def test_a_head_that_is_not_tied_is_needed(stored: Stored) -> None:
    untied = read_model_config(ALIASES["llava"].folder)
    entries = {
        untied.family.hub_name(name): TensorEntry(FOLDER / "x", 0, 0, shape, "F16")
        for name, shape in untied.shapes.items()
    }
    assert len(bind_tensors(entries, untied, FOLDER)) == len(untied.shapes)
    del entries[HEAD]
    with pytest.raises(InputError, match=r"lacks the tensor lm_head\.weight"):
        bind_tensors(entries, untied, FOLDER)


def test_all_weight_formats(model: ModelConfig, stored: Stored) -> None:
    for dtype in DTYPE_BYTES:
        changed = stored | {PROJECTOR: replace(stored[PROJECTOR], dtype=dtype)}
        if dtype in {"F16", "BF16", "F32"}:
            assert bind_tensors(changed, model, FOLDER)
        else:
            with pytest.raises(InputError, match=f"as {dtype},"):
                bind_tensors(changed, model, FOLDER)
