from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.config_file import read_config_file
from vtexport.errors import InputError

PARTS = {"text_config": {"vocab_size": 9}, "vision_config": {"hidden_size": 8}}


def write(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def llava(**content: Any) -> dict[str, Any]:
    return {"model_type": "llava", **PARTS, **content}


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),  # as transformers 5 has it
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_dtype_of_both_spellings(tmp_path: Path, content: Any, dtype: str) -> None:
    config = read_config_file(write(tmp_path, llava(**content)))
    assert (config.model_type, config.dtype, config.dtype_note) == ("llava", dtype, None)


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        ({"dtype": "auto"}, "float32"),
        ({"torch_dtype": "float8_e4m3fn"}, "float32"),
        ({"torch_dtype": "float64", "text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": {"": "float16", "text_config": "bfloat16"}}, "float16"),
        ({"dtype": {"vision_config": "torch.bfloat16"}}, "bfloat16"),
        ({"dtype": {}}, "float32"),
        ({"dtype": 16}, "float32"),
        ({"dtype": ["float16"]}, "float32"),
    ],
)
def test_other_words_choose_a_type_for_random_weights_and_say_so(tmp_path: Path, content: Any, dtype: str) -> None:
    config = read_config_file(write(tmp_path, llava(**content)))
    assert config.dtype == dtype
    if content["dtype" if "dtype" in content else "torch_dtype"]:
        assert config.dtype_note is not None
        assert config.dtype_note.endswith(f"random weights are written in {dtype}")


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False}}, "bitsandbytes"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "quantization_config"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": [1]}, "quantization_config"),
        ({"quantization_config": {}}, None),
        ({"quantization_config": None}, None),
        ({}, None),
    ],
)
def test_a_quantisation_is_a_claim(tmp_path: Path, content: Any, claim: str | None) -> None:
    assert read_config_file(write(tmp_path, llava(**content))).quantisation == claim


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "not readable as JSON"),
        ("\udcff", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_config_file(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config.json.*save_pretrained"):
        read_config_file(tmp_path)
