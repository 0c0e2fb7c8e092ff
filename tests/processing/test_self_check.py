"""The check of every build finds what would change answers, and passes what the library itself does differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hub_llava import TEMPLATE, image_files, text_files
from PIL import Image
from text_checkpoint import processor_of, read_files, reader_of, write_text_checkpoint

from vtexport.bundle.manifest import ImagesPerPrompt
from vtexport.errors import InputError
from vtexport.processing.library import load_processor
from vtexport.processing.self_check import (
    check_whole_processor,
    compare_ids,
    compare_text,
    on_white,
    sample_conversations,
    torchvision_levels,
)
from vtexport.runtime.prompt import PromptReader, _compile

TOKENS = 64
KINDS = ["one turn", "two turns", "two images", "no image"]
_ANY = ImagesPerPrompt()


class Compared:
    """A checkpoint's small files, and the comparison of ids with some of what the bundle has changed."""

    def __init__(self, folder: Path, **changed: Any):
        self.folder = write_text_checkpoint(folder / "checkpoint", **changed)
        self.files = read_files(self.folder)
        self.processor = processor_of(self.folder)
        self.reader = reader_of(self.files, folder / "bundle")
        self.notes: list[str] = []

    def run(
        self, reader: PromptReader | None = None, tokens: int = TOKENS, limits: ImagesPerPrompt = _ANY
    ) -> list[str]:
        reader, template = reader or self.reader, self.files.chat_template
        return compare_ids(reader, self.processor, reader._text, template, tokens, self.notes.append, limits)


def test_ids_of_the_hubs_files_are_equal(tmp_path: Path) -> None:
    compared = Compared(tmp_path)
    assert compared.run() == KINDS
    assert compared.notes == []


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{{ bos_token }}" + TEMPLATE,
        TEMPLATE.replace("ASSISTANT:", "{{ image_token[:0] }}{{ pad_token }}ASSISTANT:"),
        TEMPLATE + "{% if tools is not none %}TOOLS{% endif %}",
    ],
)
def test_ids_with_other_templates_are_equal(tmp_path: Path, template: str) -> None:
    changed = {"chat_template__jinja": template, "chat_template__json": None}
    assert Compared(tmp_path, **changed).run() == KINDS


@pytest.mark.parametrize(
    ("limits", "kinds"), [(ImagesPerPrompt(least=1, most=1), KINDS[:2]), (ImagesPerPrompt(least=1), KINDS[:3])]
)
def test_conversations_that_the_model_does_not_take_are_left_out(
    tmp_path: Path, limits: ImagesPerPrompt, kinds: list[str]
) -> None:
    assert Compared(tmp_path).run(limits=limits) == kinds


@pytest.mark.parametrize(
    ("written", "kinds"),
    [
        ("{% if loop.first %}<image>{% endif %}", ["one turn", "two turns", "no image"]),
        ("<image>{{ image_token[:0] }}", KINDS),
    ],
)
def test_a_template_that_writes_one_image_alone(tmp_path: Path, written: str, kinds: list[str]) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content if c.type == 'image' %}" + written + "{% endfor %}"
        "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    assert Compared(tmp_path, chat_template__jinja=template, chat_template__json=None).run() == kinds


def test_a_place_of_an_image_that_differs_is_found(tmp_path: Path) -> None:
    """The runtime's template has both images in front; the library's in their places."""
    parts = "{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}"
    template, sort = f"{{% for m in messages %}}{parts}{{% endfor %}}", "m.content | sort(attribute='type')"
    compared = Compared(tmp_path, chat_template__jinja=template, chat_template__json=None)
    assert compared.run() == KINDS
    compared.reader._template = _compile(template.replace("m.content", sort))
    with pytest.raises(InputError, match="of two images differ"):
        compared.run()


def test_another_tokenizer_is_found(tmp_path: Path) -> None:
    compared = Compared(tmp_path)
    tokenizer = json.loads((tmp_path / "bundle" / "tokenizer.json").read_text())
    tokenizer["normalizer"]["normalizers"] = tokenizer["normalizer"]["normalizers"][1:]
    (tmp_path / "bundle" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"token ids of a conversation of one turn differ .* at place \d+ .* nothing"):
        compared.run(reader_again(compared, tmp_path))


def test_a_second_start_token_is_found(tmp_path: Path) -> None:
    compared = Compared(tmp_path, chat_template__jinja="{{ bos_token }}" + TEMPLATE, chat_template__json=None)
    compared.reader._text = msgspec.structs.replace(compared.reader._text, bos_token=None)
    with pytest.raises(InputError, match="at place 1 "):
        compared.run()


def test_a_template_for_one_turn_alone_is_compared_for_one(tmp_path: Path) -> None:
    template = (
        "{{ messages[0].content[1].text }}<image>{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}"
    )
    compared = Compared(tmp_path, chat_template__jinja=template, chat_template__json=None)
    assert compared.run() == ["one turn"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_additional_image_tokens": 0}, "makes 63 image tokens of an image, and the vision tower gives 64"),
        ({"patch_size": None}, "cannot repeat the image token, and the vision tower gives 64"),
        ({"vision_feature_select_strategy": "full"}, "makes 65 image tokens"),
    ],
)
def test_a_processor_that_counts_otherwise_is_told(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    processor = {**image_files()["processor_config.json"], **change}
    compared = Compared(tmp_path, processor_config__json=processor)
    assert compared.run() == KINDS
    assert len(compared.notes) == 1
    assert said in compared.notes[0]


@pytest.mark.parametrize(
    "change", [{"max_length": 16}, {"padding": "max_length", "max_length": 100}, {"padding": True, "truncation": True}]
)
def test_a_tokenizer_that_cuts_or_fills_is_compared_without(tmp_path: Path, change: dict[str, Any]) -> None:
    settings = {**text_files()["tokenizer_config.json"], "pad_to_multiple_of": 64, **change}
    assert Compared(tmp_path, tokenizer_config__json=settings).run() == KINDS


@pytest.mark.parametrize(
    ("change", "named"),
    [({"resample": 0}, "resample"), ({"size": 112, "do_resize": False}, "do_resize, size"), ({"legacy": True}, None)],
)
def test_settings_of_the_tokenizer_that_change_pixels(
    tmp_path: Path, change: dict[str, Any], named: str | None
) -> None:
    """transformers' processor hands them on to its image processor."""
    settings = {**text_files()["tokenizer_config.json"], **change}
    processor = load_processor(write_text_checkpoint(tmp_path, tokenizer_config__json=settings))
    if named is None:
        check_whole_processor(processor, "<image>")
    else:
        with pytest.raises(InputError, match=rf"by settings of the tokenizer as well \({named}\).*take them out"):
            check_whole_processor(processor, "<image>")


@pytest.mark.parametrize("forced", [False, True])
def test_text_that_the_library_cleans_up_is_told(tmp_path: Path, forced: bool) -> None:
    settings = {
        **text_files()["tokenizer_config.json"], "clean_up_tokenization_spaces": True,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": forced,
    }  # fmt: skip
    compared = Compared(tmp_path, tokenizer_config__json=settings)
    tokenizer = compared.processor.tokenizer
    compare_text(compared.reader, tokenizer, compared.notes.append)
    ids = tokenizer("A cup , is n't", add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) == "A cup , is n't":  # the library alone decides for which tokenizers it does
        assert compared.notes == []
    else:
        (note,) = compared.notes
        assert 'as clean_up_tokenization_spaces asks: ", isn\'t " where the bundle\'s text has " , is n\'"' in note


def test_a_runtime_that_cannot_read_is_found(tmp_path: Path) -> None:
    compared = Compared(tmp_path)
    compared.reader._text = msgspec.structs.replace(compared.reader._text, image_token="<picture>")
    with pytest.raises(InputError, match="the bundle's runtime cannot read a conversation of one turn"):
        compared.run()


def test_conversations_hold_what_tokenizers_differ_in() -> None:
    text = json.dumps(sample_conversations()["two turns"], ensure_ascii=False)
    assert all(part in text for part in ("é", "数", "“", "  Is", "\\n"))


def test_white_behind_transparency() -> None:
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    half = Image.new("RGBA", (3, 2), (200, 0, 0, 128))
    assert np.asarray(on_white(clear)).min() == 255
    assert np.asarray(on_white(half))[0, 0].tolist() == [227, 127, 127]


def test_levels_are_counted_in_eight_bits(tmp_path: Path) -> None:
    """A processor whose pixels differ by one level in one channel."""
    from vtexport.processing.image_processor import image_settings
    from vtexport.processing.library import load_processor

    processor = load_processor(write_text_checkpoint(tmp_path)).image_processor
    settings = image_settings(processor, 112, "x")

    def one_off(image: Any, return_tensors: str) -> dict[str, np.ndarray]:
        pixels = np.array(processor(image, return_tensors="np")["pixel_values"])
        pixels[0, 1, 5, 5] += 1 / 255 / settings.std[1]
        return {"pixel_values": pixels}

    assert torchvision_levels(processor, settings) == 0
    assert torchvision_levels(one_off, settings) == pytest.approx(1, abs=1e-2)


def reader_again(compared: Compared, folder: Path) -> PromptReader:
    text = compared.reader._text
    return PromptReader.from_files(text, folder / "bundle" / text.tokenizer, folder / "bundle" / text.chat_template)
