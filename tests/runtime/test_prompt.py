"""Prompts: the ids are transformers' own, and wrong prompts are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_llava import text_files
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import IMAGE_TOKEN_ID
from tokenizers import Tokenizer

from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, UsageError
from vtexport.runtime.prompt import PromptReader, StreamDecoder

QUESTIONS = ["What is this?", "  spaces  kept ", "Grüße, 你好 😀", "line\nbreak", "<s> a </s> trick", "{{ braces }}"]


@pytest.fixture(scope="module")
def reader(tiny_bundle: Path) -> PromptReader:
    return PromptReader(open_bundle(tiny_bundle))


def transformers_ids(folder: Path, messages: list[dict[str, Any]]) -> list[int]:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_ids_equal_transformers(reader: PromptReader, tiny_checkpoint: Path, question: str) -> None:
    prompt = reader.read(question)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    assert [*prompt.before, IMAGE_TOKEN_ID, *prompt.after] == transformers_ids(tiny_checkpoint, messages)


def test_a_conversation_with_plain_strings(reader: PromptReader, tiny_checkpoint: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Of what?"},
    ]
    parts = [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
        for m in messages
    ]
    prompt = reader.read(messages)
    assert [*prompt.before, IMAGE_TOKEN_ID, *prompt.after] == transformers_ids(tiny_checkpoint, parts)


def test_raw_prompt(reader: PromptReader) -> None:
    prompt = reader.read("before<image>after", raw=True)
    assert reader.tokenizer.decode(prompt.before.tolist()) == "before"
    assert reader.tokenizer.decode(prompt.after.tolist()) == "after"


def test_start_token_is_not_doubled(reader: PromptReader) -> None:
    assert reader.read("<s>x<image>", raw=True).before.tolist().count(1) == 1
    assert reader.read("x<image>", raw=True).before.tolist().count(1) == 1


@pytest.mark.parametrize(
    ("prompt", "raw", "message"),
    [
        ("", False, "the prompt is empty"),
        (" \n", False, "the prompt is empty"),
        ("see <image> here", False, "stands for the image; leave it out or use a raw prompt"),
        ("no placeholder", True, "holds 0 images"),
        ("<image><image>", True, "holds 2 images"),
        ([{"role": "user", "content": "no image"}], False, "holds 0 images"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], False, "holds 2 images"),
        ([{"content": 5}], False, "template does not take"),
        (5, False, "a prompt is a string, or a list of messages"),
        (b"what?", False, "a prompt is a string, or a list of messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], True, "a raw prompt is a string"),
    ],
)
def test_wrong_prompts(reader: PromptReader, prompt: Any, raw: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.read(prompt, raw=raw)


def test_streamed_text_equals_decoded_text(reader: PromptReader) -> None:
    text = "A cup ☕, 日本 and 😀."
    ids = reader.tokenizer.encode(text, add_special_tokens=False).ids
    stream = reader.stream()
    pieces = [stream.step(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text == text
    assert not any("\ufffd" in piece for piece in pieces), "half a character must wait for its rest"


def test_streamed_noise_loses_nothing(reader: PromptReader) -> None:
    ids = [random.Random(0).randrange(5, 261) for _ in range(300)]
    stream = reader.stream()
    pieces = [stream.step(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text
    assert stream.text == reader.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    """Spaces as ▁, one of them taken from the front of a text, and characters outside the vocabulary as bytes."""
    return Tokenizer.from_str(json.dumps(text_files()["tokenizer.json"]))


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_llamas_tokens_stream_as_they_decode(llama: Tokenizer, data: st.DataObject) -> None:
    """Whatever the order: spaces alone, bytes that are no UTF-8, special tokens, numbers behind the vocabulary."""
    ids = [llama.token_to_id(piece) for piece in ("▁", "B", "▁the", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "</s>")]
    drawn = data.draw(st.lists(st.sampled_from(ids) | st.integers(0, llama.get_vocab_size() + 20), max_size=20))
    stream = StreamDecoder(llama)
    pieces = [stream.step(token) for token in drawn] + [stream.finish()]
    assert "".join(pieces) == stream.text == llama.decode(drawn, skip_special_tokens=True)


def test_llamas_text_comes_as_it_is_written(llama: Tokenizer) -> None:
    ids = llama.encode("the cup costs 3€ or 日本.", add_special_tokens=False).ids
    stream = StreamDecoder(llama)
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) == "the cup costs 3€ or 日本."
    assert sum(map(bool, pieces)) > len(ids) / 2, "most tokens are text at once"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{% generation %}<image>{{ m.role }}{% endgeneration %}{% endfor %}", "<image>user"),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}<image>{% endfor %}", "<image>"),
        ("{{ messages[0].content | tojson }}<image>", None),
        ("{{ bos_token }}<image>{{ eos_token }}", "<s><image></s>"),
    ],
)
def test_templates_in_transformers_dialect(bundle_copy: Path, template: str, expected: str | None) -> None:
    bundle = open_bundle(bundle_copy)
    (bundle_copy / "chat_template.jinja").write_text(template)
    rendered = PromptReader(bundle).render("ä?")
    assert rendered == expected if expected is not None else '"ä?"' in rendered


def test_template_that_refuses(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    (bundle_copy / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        PromptReader(bundle).read("x")


def test_template_cannot_reach_out(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    (bundle_copy / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}<image>")
    with pytest.raises(UsageError, match="does not take"):
        PromptReader(bundle).read("x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{% if", "not a tokenizer"),
        ("chat_template.jinja", "{% if", "not a template"),
        ("chat_template.jinja", "{" * 2000, "not a template"),  # deeper than the parser goes
    ],
)
def test_damaged_files(bundle_copy: Path, name: str, text: str, message: str) -> None:
    bundle = open_bundle(bundle_copy)
    (bundle_copy / name).write_text(text)
    with pytest.raises(BundleError, match=message):
        PromptReader(bundle)


def test_ids_are_int64(reader: PromptReader) -> None:
    assert reader.read("x").after.dtype == np.int64
