from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtexport.checkpoint.config_file import read_config_file
from vtexport.errors import InputError


def write(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        ({"model_type": "llava", "torch_dtype": "float16"}, "float16"),
        ({"model_type": "llava", "dtype": "torch.bfloat16"}, "bfloat16"),
        ({"model_type": "llava", "text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"model_type": "llava"}, "float32"),
    ],
)
def test_dtype_of_both_spellings(tmp_path: Path, content: Any, dtype: str) -> None:
    config = read_config_file(write(tmp_path, content))
    assert (config.model_type, config.dtype) == ("llava", dtype)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised \(bitsandbytes\).*quantised from"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, r"quantised \(quantization_config\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, r"quantised \(compressed-tensors\)"),
        ({"dtype": "int8"}, "dtype 'int8'; vtexport works with float16, bfloat16, float32"),
        ("[]", "not a JSON object"),
        ("{", "not readable as JSON"),
        ("\udcff", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_config_file(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config.json.*save_pretrained"):
        read_config_file(tmp_path)
