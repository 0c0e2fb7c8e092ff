from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vtexport.checkpoint.readable import readable_folder


@pytest.mark.parametrize("content", [{"dtype": "float16"}, {"dtype": None}, {"torch_dtype": "float8_e4m3fn"}])
def test_a_folder_that_transformers_can_read_stays_itself(
    saved_folder: Path, edit_json: Callable[..., None], content: dict[str, Any]
) -> None:
    edit_json(saved_folder / "config.json", **content)
    with readable_folder(saved_folder) as folder:
        assert folder == saved_folder


@pytest.mark.parametrize("place", ["dtype", "torch_dtype", "text_config", "vision_config"])
def test_a_word_that_stops_transformers_does_not_hide_the_tokenizer(
    saved_folder: Path, edit_json: Callable[..., None], place: str
) -> None:
    """Nothing of the checkpoint is changed, and nothing of the copy stays."""
    path = saved_folder / "config.json"
    content = json.loads(path.read_text())
    word = content[place] | {"dtype": "auto"} if "config" in place else "auto"
    edit_json(path, **{"dtype": None, place: word})  # beside a dtype the older torch_dtype does not count
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        AutoTokenizer.from_pretrained(saved_folder, local_files_only=True)
    with readable_folder(saved_folder) as folder:
        read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert read("a photo")["input_ids"]
        assert not list(folder.glob("*.safetensors"))
    assert not folder.exists()
    assert path.read_bytes() == before


def test_a_folder_that_vanished_is_left_to_those_who_read_it(saved_folder: Path) -> None:
    shutil.rmtree(saved_folder)
    with readable_folder(saved_folder) as folder:
        assert folder == saved_folder
