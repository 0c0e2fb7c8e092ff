"""Tokenizer and template files: found where transformers finds them, refused when they do not fit the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_llava import IMAGE_TOKEN_ID, PACKAGED_MINI

from vtexport.errors import InputError
from vtexport.export.text import find_chat_template, write_text_files
from vtexport.models import llava


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(PACKAGED_MINI / name, folder / name)
    return folder


def test_writes_what_the_device_needs(source: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    (source / "chat_template.jinja").write_text("T<image>")
    assert write_text_files(source, tmp_path, IMAGE_TOKEN_ID, "family", notes.append) == ("<image>", "<s>")
    assert (tmp_path / "chat_template.jinja").read_text() == "T<image>"
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None
    assert notes == []


def test_a_missing_template_is_replaced_and_said(source: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    write_text_files(source, tmp_path, IMAGE_TOKEN_ID, llava.CHAT_TEMPLATE, notes.append)
    assert (tmp_path / "chat_template.jinja").read_text() == llava.CHAT_TEMPLATE
    assert len(notes) == 1
    assert "has no chat template; the bundle gets the family's own" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("chat_template.json", {"chat_template": "A"}, "A"),
        ("processor_config.json", {"chat_template": "B"}, "B"),
        ("tokenizer_config.json", {"chat_template": "C"}, "C"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "x", "template": "D"}, {"name": "default", "template": "E"}]},
            "E",
        ),
        ("tokenizer_config.json", {}, None),
    ],
)
def test_places_of_a_template(tmp_path: Path, name: str, content: dict[str, object], expected: str | None) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert find_chat_template(tmp_path) == expected


def test_a_template_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(InputError, match=r"chat_template.json is not a JSON object"):
        find_chat_template(tmp_path)


def test_an_image_token_the_tokenizer_does_not_know(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not read image token 32000"):
        write_text_files(source, tmp_path, 32000, "", lambda text: None)


def test_a_damaged_tokenizer(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be loaded"):
        write_text_files(source, tmp_path, IMAGE_TOKEN_ID, "", lambda text: None)


def test_the_familys_template_is_llavas(tiny_bundle: Path) -> None:
    """As LLaVA-1.5 was trained: "USER: <image>\\n{question} ASSISTANT:"."""
    from vtexport.bundle.reader import open_bundle
    from vtexport.runtime.prompt import PromptReader, _compile

    reader = PromptReader(open_bundle(tiny_bundle))
    reader._template = _compile(llava.CHAT_TEMPLATE)
    assert reader.render("What is this?") == "USER: <image>\nWhat is this? ASSISTANT:"
