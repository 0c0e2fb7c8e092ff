"""All that is read of a checkpoint's small files together, held to the library for every combination of them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hub_llava import IMAGE_TOKEN_ID, TEMPLATE, image_files, small_config, text_files
from hypothesis import given, settings
from hypothesis import strategies as st
from text_checkpoint import write_text_checkpoint

from vtexport.errors import InputError
from vtexport.models.registry import family_of
from vtexport.processing.read import Processing, read_processing

LLAVA = family_of("llava", "")

INSIDE = {**image_files()["preprocessor_config.json"], "image_mean": [0.5, 0.4, 0.3], "resample": 2}
OTHERS = "{{ bos_token }}" + TEMPLATE  # a template of its own for each file
PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
END = {"tokenizer": 2, "generation_config.json": IMAGE_TOKEN_ID + 1, "config.json": 5, "text_config": 7}


def read(folder: Path) -> tuple[Processing, list[str]]:
    """Settings as a build reads them, and its notes."""
    notes: list[str] = []
    config = LLAVA.load_config(folder)
    return read_processing(folder, LLAVA, config, LLAVA.model_spec(config, folder), notes.append), notes


def combined(folder: Path, inside: bool, own: bool, places: set[str], ends: set[str]) -> Path:
    """A checkpoint with image settings in one file or two, templates in some, and end ids in some."""
    processor = image_files()["processor_config.json"] | ({"image_processor": INSIDE} if inside else {})
    config: dict[str, Any] = small_config()
    files: dict[str, Any] = {
        "config.json": config,
        "processor_config.json": processor,
        "tokenizer_config.json": text_files()["tokenizer_config.json"],
        "generation_config.json": {"bos_token_id": 1} if "generation_config.json" in ends else None,
        "chat_template.json": None, "chat_template.jinja": None,
    }  # fmt: skip
    if inside and not own:
        files["preprocessor_config.json"] = None
    for place in places:
        template = f"{{# {place} #}}{OTHERS}"
        if place.endswith(".jinja"):
            files[place] = template
        else:
            files[place] = {**(files[place] or {}), "chat_template": template}
    for place in ends:
        target = config["text_config"] if place == "text_config" else files[place]
        target["eos_token_id"] = END[place]
    return write_text_checkpoint(folder, **{name.replace(".", "__"): content for name, content in files.items()})


@settings(max_examples=25)
@given(
    inside=st.booleans(),
    own=st.booleans(),
    places=st.sets(st.sampled_from(PLACES)),
    ends=st.sets(st.sampled_from(("generation_config.json", "config.json", "text_config")), min_size=1),
)
def test_every_combination_is_the_librarys(inside: bool, own: bool, places: set[str], ends: set[str]) -> None:
    from transformers import AutoProcessor, GenerationConfig

    with TemporaryDirectory() as temporary:
        folder = combined(Path(temporary), inside, own, places, ends)
        found, notes = read(folder)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        if "generation_config.json" in ends:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(LLAVA.load_config(folder))

    assert found.image.mean == list(processor.image_processor.image_mean)
    assert any("describes images" in note for note in notes) == (inside and own)

    template = processor.chat_template or processor.tokenizer.chat_template
    assert found.files.chat_template.text == (template or LLAVA.chat_template)
    assert any("hold different chat templates" in note for note in notes) == (len(places) > 1)
    assert any("has no chat template" in note for note in notes) == (not places)

    assert found.text.eos_token_ids == [generation.eos_token_id]
    assert sum("end token '</s>' (2) is none of those" in note for note in notes) == 1
    said = [note for note in notes if note.startswith("config.json has eos_token_id")]
    assert len(said) == ("generation_config.json" in ends and bool(ends - {"generation_config.json"}))
    assert all(len(note) < 300 for note in notes)


def test_the_hubs_own_files_need_no_note(tmp_path: Path) -> None:
    assert read(write_text_checkpoint(tmp_path))[1] == []


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("special_tokens_map", {"bos_token": "</s>"}, "special_tokens_map.json has bos_token '</s>'"),
        ("generation_config", {"eos_token_id": [5, 7]}, "is none of those that generation ends at (5, 7)"),
        ("tokenizer_config", {"eos_token": None}, "special_tokens_map.json has eos_token '</s>'"),
    ],
)
def test_files_that_disagree_on_tokens(tmp_path: Path, file: str, change: dict[str, Any], said: str) -> None:
    content = {**text_files()[f"{file}.json"], **change}
    (note,) = read(write_text_checkpoint(tmp_path, **{f"{file}__json": content}))[1]
    assert said in note


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_has_a_files_name_alone_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    """transformers goes on as if there were none; a cache that lost a file has such links."""
    path = write_text_checkpoint(tmp_path) / name
    path.unlink()
    if kind == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=rf"{name} is a {kind}"):
        read(tmp_path)


def test_settings_of_the_tokenizer_that_change_pixels(tmp_path: Path) -> None:
    content = {**text_files()["tokenizer_config.json"], "resample": 0}
    with pytest.raises(InputError, match="by settings of the tokenizer as well"):
        read(write_text_checkpoint(tmp_path, tokenizer_config__json=content))


def test_text_that_the_library_cleans_up(tmp_path: Path) -> None:
    """A tokenizer of whole words, which transformers cleans up after where it is asked to."""
    words = ["<unk>", "<s>", "</s>", "A", "cup", ",", "is", "n", "'", "t", "it", "?", "hot", "!", "two", "."]
    tokenizer = text_files()["tokenizer.json"]
    vocabulary = {word: number for number, word in enumerate([*words, *map(str, range(IMAGE_TOKEN_ID - len(words)))])}
    tokenizer |= {
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    settings_file = {**text_files()["tokenizer_config.json"], "clean_up_tokenization_spaces": True}
    changed = {"tokenizer__json": tokenizer, "tokenizer_config__json": settings_file}
    notes = read(write_text_checkpoint(tmp_path, **changed))[1]
    assert any("as clean_up_tokenization_spaces asks" in note for note in notes), json.dumps(notes)
