from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.model_config import read_model_config
from vtexport.errors import InputError, UsageError


def test_shapes_are_those_of_the_model(tiny_checkpoint: Path, tiny_model: Any) -> None:
    model = read_model_config(tiny_checkpoint)
    canonical = {model.family.canonical_name(name): tuple(p.shape) for name, p in tiny_model.named_parameters()}
    assert model.shapes == canonical
    assert (model.file.model_type, model.file.dtype) == ("llava", "float32")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"hidden_size": "wide"}, "hidden_size"),
        ("text_config", {"num_attention_heads": 5}, "is not a configuration|can be built"),
        ("text_config", {"hidden_act": "no such activation"}, "no such activation"),
        ("text_config", {"model_type": "no such model"}, "no such model"),
        ("vision_config", {"hidden_size": -1}, "is not a configuration|can be built"),
        (None, {"text_config": 7}, "text_config"),
        ("text_config", {"hidden_act": "x" * 20_000}, "xxx"),
        (None, {"model_type": "qwen9"}, "model_type 'qwen9', which vtexport cannot export; supported: llava"),
        (None, {"model_type": None}, "names no model_type"),
    ],
)
def test_impossible_configurations(
    saved_folder: Path,
    edit_json: Callable[..., None],
    part: str | None,
    changes: dict[str, Any],
    message: str,
) -> None:
    path = saved_folder / "config.json"
    if part is not None:
        changes = {part: json.loads(path.read_text())[part] | changes}
    edit_json(path, **changes)
    with pytest.raises((InputError, UsageError), match=message) as caught:  # wrong, or not known here
        read_model_config(saved_folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(path), "")) < 300
