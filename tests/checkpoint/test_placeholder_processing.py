from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.model_config import read_model_config
from vtexport.checkpoint.placeholder_processing import has_tokenizer, write_placeholder_processing
from vtexport.errors import InputError


@pytest.fixture(scope="module")
def llava_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    alias_folder = ALIASES["llava"].folder
    (folder / "config.json").write_bytes((alias_folder / "config.json").read_bytes())
    write_placeholder_processing(folder, read_model_config(alias_folder).config)
    return folder


def config(**text: Any) -> Any:
    """The fields that are read, of a small model."""
    sizes = {"vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    return SimpleNamespace(
        vision_config=SimpleNamespace(image_size=224, patch_size=16),
        text_config=SimpleNamespace(**{"pad_token_id": None} | sizes | text),
        image_token_index=299,
        pad_token_id=None,
        vision_feature_select_strategy="default",
    )


def test_llama_ids(llava_files: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llava_files / "tokenizer.json"))
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}
    assert {text: tokenizer.token_to_id(text) for text in special} == special
    assert tokenizer.token_to_id("<0x00>") == 3
    assert tokenizer.token_to_id("<0xFF>") == 258
    assert tokenizer.get_vocab_size() == 32064


def test_text_goes_in_and_out(llava_files: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llava_files / "tokenizer.json"))
    text = "USER: <image>\nÉ 汉 [259]? ASSISTANT:"
    ids = tokenizer.encode(text).ids
    assert ids == [1, *(3 + b for b in b"USER: "), 32000, *(3 + b for b in "\nÉ 汉 [259]? ASSISTANT:".encode())]
    assert tokenizer.decode(ids) == text.replace("<image>", "")


def test_every_id_decodes_to_visible_text(llava_files: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llava_files / "tokenizer.json"))
    assert tokenizer.decode([259, 31999, 32063]) == "[259][31999][32063]"
    texts = [tokenizer.decode([number], skip_special_tokens=False) for number in range(32064)]
    assert all(texts)


def test_transformers_reads_them(llava_files: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    text = "USER: <image>\nWhat is it? ASSISTANT:"
    tokenizer = AutoTokenizer.from_pretrained(llava_files)
    assert tokenizer(text).input_ids == Tokenizer.from_file(str(llava_files / "tokenizer.json")).encode(text).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 32001)
    processor = AutoProcessor.from_pretrained(llava_files)
    inputs = processor(images=Image.new("RGB", (64, 48)), text=text, return_tensors="np")
    assert (np.asarray(inputs["input_ids"]) == 32000).sum() == 576
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    assert processor.apply_chat_template([message], add_generation_prompt=True) == text


def test_sizes_come_from_the_configuration(tmp_path: Path) -> None:
    write_placeholder_processing(tmp_path, config())
    image = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert image["size"] == {"shortest_edge": 224}
    assert image["crop_size"] == {"height": 224, "width": 224}
    assert json.loads((tmp_path / "processor_config.json").read_text())["patch_size"] == 16
    assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_bytes_make_way_for_special_tokens(tmp_path: Path) -> None:
    small = config(bos_token_id=5, pad_token_id=4)
    write_placeholder_processing(tmp_path, small)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("\0\1\2").ids == [5, 3, 6, 7]


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"own")
    (tmp_path / "chat_template.jinja").write_text("own")
    write_placeholder_processing(tmp_path, config())
    assert has_tokenizer(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "chat_template.jinja").read_text() == "own"
    assert (tmp_path / "preprocessor_config.json").is_file()


def test_vocabulary_without_room(tmp_path: Path) -> None:
    small = config(vocab_size=200)
    small.image_token_index = 4
    with pytest.raises(InputError, match="vocab_size 200; copy the model's own tokenizer files"):
        write_placeholder_processing(tmp_path, small)
    with pytest.raises(InputError, match="image_token_index 299, which is not a free id below its vocab_size 280"):
        write_placeholder_processing(tmp_path, config(vocab_size=280))
    assert not list(tmp_path.iterdir())
