"""Tokenizer and template files: found where transformers finds them, refused when they do not fit the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_llava import IMAGE_TOKEN_ID as HUB_IMAGE_TOKEN_ID
from hub_llava import sentencepiece_model, text_files
from text_checkpoint import processor_of, read_files, reader_of, write_text_checkpoint
from tiny_llava import IMAGE_TOKEN_ID, PACKAGED_MINI

from vtexport.errors import InputError, MissingDependencyError
from vtexport.models.registry import family_of
from vtexport.processing.text import TextFiles
from vtexport.processing.tokenizer import disagreements, load_tokenizer

LLAVA = family_of("llava", "")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(PACKAGED_MINI / name, folder / name)
    return folder


def write(
    source: Path, folder: Path, image_token_id: int, familys_own: str | None, notes: list[str] | None = None
) -> TextFiles:
    files = read_files(source, familys_own, image_token_id)
    if notes is not None:
        notes += files.notes
    files.write(folder)
    return files


def test_writes_what_the_device_needs(source: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    template = "<image>{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    written = write(source, tmp_path, IMAGE_TOKEN_ID, "family", notes)
    assert (written.image_token, written.bos_token) == ("<image>", "<s>")
    assert (tmp_path / "chat_template.jinja").read_text() == template
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None
    assert notes == []


def test_special_tokens_are_transformers(source: Path, tmp_path: Path) -> None:
    """Named ones in addition to the usual, such as the image's, and all of them as plain strings."""
    from transformers import AutoTokenizer

    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] = {"image_token": "<image>", "sound_token": "</s>"}
    settings["unk_token"] = {"__type": "AddedToken", "content": "<unk>", "lstrip": False, "rstrip": False,
                             "normalized": False, "single_word": False}  # fmt: skip
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    read = read_files(source, LLAVA.chat_template, IMAGE_TOKEN_ID)
    assert read.special_tokens == AutoTokenizer.from_pretrained(source, local_files_only=True).special_tokens_map
    assert read.special_tokens["sound_token"] == "</s>"
    assert {type(token) for token in read.special_tokens.values()} == {str}


def test_a_tokenizer_saved_to_cut_and_pad(source: Path, tmp_path: Path) -> None:
    """transformers' processor cuts prompts there, question and all; the bundle does not, and says so."""
    saved = json.loads((source / "tokenizer.json").read_text())
    saved["truncation"] = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    saved["padding"] = {
        "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<unk>",
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(saved))
    (source / "chat_template.jinja").write_text(LLAVA.chat_template)
    notes: list[str] = []
    write(source, tmp_path, IMAGE_TOKEN_ID, None, notes)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (written["truncation"], written["padding"]) == (None, None)
    assert len(notes) == 1
    assert "saved to cut texts at 40 tokens" in notes[0] or "saved to cut texts at 5 tokens" in notes[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"model_max_length": 500, "truncation": True}, "saved to cut texts at 500 tokens"),
        ({"truncation": True}, None),  # the hub's longest text is none
        ({"model_max_length": 500}, None),  # which transformers warns of and does not cut
    ],
)
def test_where_the_library_cuts_prompts(tmp_path: Path, changed: dict[str, Any], said: str | None) -> None:
    settings = {**text_files()["tokenizer_config.json"], **changed}
    notes = read_files(write_text_checkpoint(tmp_path, tokenizer_config__json=settings)).notes
    assert (notes == []) if said is None else (len(notes) == 1 and said in notes[0])


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("special_tokens_map", {"bos_token": "</s>"}, "bos_token '</s>', where transformers takes '<s>'"),
        ("special_tokens_map", {"pad_token": {"content": "<unk>"}}, "pad_token '<unk>', where transformers takes"),
        ("special_tokens_map", {"bos_token": {"content": "<s>", "lstrip": True}}, None),
        ("special_tokens_map", {"unheard_of": 3, "additional_special_tokens": ["<x>"]}, None),
        ("added_tokens", {"<image>": 3}, "the token '<image>' as 3, where transformers takes 344"),
        ("added_tokens", {"<lost>": 500}, "the token '<lost>' as 500, where transformers takes None"),
        ("tokenizer_config", {"added_tokens_decoder": {"350": {"content": "<image>"}}}, "'<image>' as 350, where"),
    ],
)
def test_special_tokens_that_files_disagree_on(
    tmp_path: Path, file: str, changed: dict[str, Any], said: str | None
) -> None:
    content = {**text_files()[f"{file}.json"], **changed}
    folder = write_text_checkpoint(tmp_path, **{f"{file}__json": content})
    tokenizer = load_tokenizer(folder)
    notes = disagreements(folder, tokenizer)
    if said is None or (said.startswith("'<image>' as 350") and tokenizer.get_vocab()["<image>"] == 350):
        assert notes == []
    else:
        assert len(notes) == 1
        assert notes[0].startswith(f"{file}.json has ")
        assert said in notes[0]
        assert len(notes[0]) < 300


def test_a_missing_template_is_replaced_and_said(source: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    write(source, tmp_path, IMAGE_TOKEN_ID, LLAVA.chat_template, notes)
    assert (tmp_path / "chat_template.jinja").read_text() == LLAVA.chat_template
    assert len(notes) == 1
    assert "has no chat template; the bundle gets the family's own" in notes[0]


def test_an_image_token_the_tokenizer_does_not_know(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not read image token 32000"):
        write(source, tmp_path, 32000, "")


def test_a_damaged_tokenizer(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be loaded"):
        write(source, tmp_path, IMAGE_TOKEN_ID, "")


def test_a_sentencepiece_model_without_the_package(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where transformers would take the file for one of tiktoken's and blame that."""
    import transformers.utils

    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    monkeypatch.setattr(transformers.utils, "is_sentencepiece_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"tokenizer.model alone.*pip install sentencepiece") as caught:
        write(source, tmp_path, IMAGE_TOKEN_ID, LLAVA.chat_template)
    assert caught.value.exit_code == 3
    assert "'vtexport[export]'" in str(caught.value)
    assert "tiktoken" not in (str(caught.value) + "".join(capfd.readouterr())).lower()


def test_a_damaged_sentencepiece_model(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed; it is in the extra export")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"tokenizer.model is not a whole SentencePiece model") as caught:
        write(source, tmp_path, IMAGE_TOKEN_ID, LLAVA.chat_template)
    assert "tiktoken" not in (str(caught.value) + "".join(capfd.readouterr())).lower()


def test_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    """Of a checkpoint with nothing else the ids are transformers'."""
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed; it is in the extra export")
    folder = write_text_checkpoint(tmp_path / "llava", tokenizer__json=None)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    reader = reader_of(read_files(folder), tmp_path / "written")
    processor = processor_of(folder)
    for question in ("What is the cup?", " two  spaces", "é 你", "a</s>b", "line\nbreak"):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        read = reader.read(question)
        assert read.ids(HUB_IMAGE_TOKEN_ID, [1]).tolist() == processor.tokenizer(text)["input_ids"]


def test_the_familys_template_is_llavas(tiny_bundle: Path) -> None:
    """As LLaVA-1.5 was trained: "USER: <image>\\n{question} ASSISTANT:"."""
    from vtexport.bundle.reader import open_bundle
    from vtexport.runtime.prompt import PromptReader, _compile

    reader = PromptReader(open_bundle(tiny_bundle))
    reader._template = _compile(LLAVA.chat_template)
    assert reader.render("What is this?") == "USER: <image>\nWhat is this? ASSISTANT:"
