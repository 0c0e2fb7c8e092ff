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
from PIL import Image
from text_checkpoint import processor_of, read_files, reader_of, write_text_checkpoint
from tiny_llava import IMAGE_TOKEN_ID
from tokenizers import Tokenizer

from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, UsageError
from vtexport.runtime.prompt import PromptReader, StreamDecoder, _compile

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
    assert prompt.ids(IMAGE_TOKEN_ID, [1]).tolist() == transformers_ids(tiny_checkpoint, messages)


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
    assert prompt.ids(IMAGE_TOKEN_ID, [1]).tolist() == transformers_ids(tiny_checkpoint, parts)


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
        ("", True, "the prompt is empty"),
        ([{"content": 5}], False, "message 1 has no role"),
        ([{"role": "system", "content": [{"type": "image"}]}], False, "holds 0 images .* of 1 image parts"),
        ("caf\udce9", False, "the prompt is not valid UTF-8: it has the stray byte 0xe9 behind 3 characters"),
        ("caf\udce9<image>", True, "the prompt is not valid UTF-8"),
        (5, False, "a prompt is a string, or a list of messages"),
        (b"what?", False, "a prompt is a string, or a list of messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], True, "a raw prompt is a string"),
    ],
)
def test_wrong_prompts(reader: PromptReader, prompt: Any, raw: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.read(prompt, raw=raw)


@pytest.mark.parametrize(
    ("prompt", "raw", "images", "message"),
    [
        ("no placeholder", True, 1, r"holds 0 images \(<image>\) and 1 is given; give as many as it has places for"),
        ("<image><image>", True, 1, "holds 2 images .* and 1 is given"),
        ("<image>", True, 3, "holds 1 images .* and 3 are given"),
        ([{"role": "user", "content": "no image"}], False, 1, "holds 0 images .* and 1 is given"),
        ([{"role": "user", "content": [{"type": "image"}] * 2}], False, 0, "holds 2 images .* and 0 are given"),
        ([{"role": "user", "content": [{"type": "image"}] * 2}], False, 3, "holds 2 images .* and 3 are given"),
        ([{"role": "user", "content": "<image>\nWhat?"}], False, 0, "holds 1 images .* and 0 are given"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>"}]}],
            False,
            2,
            "holds 2 images .* of 1 image parts; use a chat template that writes <image> once for each, and no text",
        ),
    ],
)
def test_another_number_of_images(reader: PromptReader, prompt: Any, raw: bool, images: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader.read(prompt, raw=raw, images=images)


@pytest.mark.parametrize("images", [0, 1, 2, 5])
def test_a_question_about_any_number_of_images(reader: PromptReader, tiny_checkpoint: Path, images: int) -> None:
    prompt = reader.read("What is this?", images=images)
    content = [*[{"type": "image"}] * images, {"type": "text", "text": "What is this?"}]
    wanted = transformers_ids(tiny_checkpoint, [{"role": "user", "content": content}])
    assert prompt.images == images
    assert prompt.ids(IMAGE_TOKEN_ID, [1] * images).tolist() == wanted
    assert len(prompt.ids(IMAGE_TOKEN_ID, [64] * images)) == len(wanted) + 63 * images


def test_raw_prompts_with_any_number_of_images(reader: PromptReader) -> None:
    for text, spans in (("a", ["a"]), ("a<image>b<image>", ["a", "b", ""]), ("<image><image>c", ["", "", "c"])):
        read = reader.read(text, raw=True)
        assert [reader.tokenizer.decode(span.tolist()) for span in read.spans] == spans
    alone = reader.read("a", raw=True)
    assert alone.images == 0
    assert alone.before.tolist() == alone.after.tolist() == alone.ids(IMAGE_TOKEN_ID, []).tolist()


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.lists(st.none() | st.sampled_from(QUESTIONS), min_size=1, max_size=4), min_size=1, max_size=3))
def test_images_stand_where_the_processor_has_them(
    hub: tuple[PromptReader, Any], turns: list[list[str | None]]
) -> None:
    """Any number in any turn, before, between and behind texts."""
    reader, processor = hub
    messages: list[dict[str, Any]] = []
    for turn in turns:
        parts = [{"type": "image"} if text is None else {"type": "text", "text": text} for text in turn]
        messages += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ]
    messages = messages[:-1]
    count = sum(text is None for turn in turns for text in turn)
    read = reader.read(messages, images=count)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [Image.new("RGB", (112, 112))] * count or None
    wanted = processor(images=images, text=text)["input_ids"]
    token = reader._text.image_token_id
    assert read.ids(token, [64] * count).tolist() == np.asarray(wanted).reshape(-1).tolist()


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


HUB_TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.sampled_from(["</s>", "<s>", "<pad>", "<unk>", " ", "  ", "\n", "▁", "the", "What is", "<0x0A>"]),
        st.sampled_from(["<image", "image>", "é", "😀", "\u0301", "\u200b", "\0", "\r\n", "\t"]),
    ),
    min_size=1,
    max_size=6,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptReader, Any]:
    """The device's reader for Llama's kind of tokenizer, and transformers' processor."""
    folder = write_text_checkpoint(tmp_path_factory.mktemp("hub") / "llava")
    return reader_of(read_files(folder), folder.parent / "written"), processor_of(folder)


def library_ids(processor: Any, messages: list[dict[str, Any]]) -> list[int]:
    """The processor's own ids, its many placeholders as one."""
    image = {"type": "image", "image": Image.new("RGB", (112, 112))}
    messages = [
        {**each, "content": [image if part["type"] == "image" else part for part in each["content"]]}
        for each in messages
    ]
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_tensors="np")
    token = processor.image_token_id
    ids = ids[0].tolist()
    return [each for at, each in enumerate(ids) if each != token or at == 0 or ids[at - 1] != token]


@settings(max_examples=60, deadline=None)
@given(system=st.none() | HUB_TEXTS, question=HUB_TEXTS, answer=HUB_TEXTS, again=HUB_TEXTS)
def test_ids_are_the_processors_whatever_is_written(
    hub: tuple[PromptReader, Any], system: str | None, question: str, answer: str, again: str
) -> None:
    reader, processor = hub

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    messages = [asked, message("assistant", answer), message("user", again)]
    if system is not None:
        messages.insert(0, message("system", system))
    for conversation in (messages, [asked]):
        if "<image>" in "".join(map(str, (system, question, answer, again))):
            with pytest.raises(UsageError, match=r"holds .* images"):
                reader.read(conversation)
            return
        read = reader.read(conversation)
        assert read.ids(reader._text.image_token_id, [1]).tolist() == library_ids(processor, conversation)


@settings(max_examples=40, deadline=None)
@given(before=HUB_TEXTS.filter(lambda text: "<image>" not in text), start=st.sampled_from(["", "<s>", " <s>", "</s>"]))
def test_the_start_token_comes_as_the_processor_sets_it(hub: tuple[PromptReader, Any], before: str, start: str) -> None:
    reader, processor = hub
    template = "{{ messages[0].content[1].text }}<image>{{ messages[0].content[2].text }}"
    content = [{"type": "image"}, {"type": "text", "text": start + before}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_template", _compile(template))
        patch.setattr(processor, "chat_template", template)
        read = reader.read(messages)
        assert read.ids(reader._text.image_token_id, [1]).tolist() == library_ids(processor, messages)


def test_a_tokenizer_saved_with_truncation_and_padding(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    expected = PromptReader(bundle).read("What is this?")
    saved = json.loads((bundle_copy / "tokenizer.json").read_text())
    saved["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    saved["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<unk>",
    }  # fmt: skip
    (bundle_copy / "tokenizer.json").write_text(json.dumps(saved))
    read = PromptReader(bundle).read("What is this?")
    assert read.before.tolist() == expected.before.tolist()
    assert read.after.tolist() == expected.after.tolist()


def test_strings_are_never_lost(hub: tuple[PromptReader, Any]) -> None:
    """LLaVA's template renders parts alone; transformers drops strings there without a word."""
    reader, _ = hub
    assert reader.render([{"role": "user", "content": "<image>\nWhat?"}]) == "USER: <image>\nWhat? ASSISTANT:"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Of what?"},
    ]
    assert reader.render(messages) == "Be brief. USER: <image>\nWhat? ASSISTANT: A cup. USER: Of what? ASSISTANT:"


def test_the_questions_own_text(reader: PromptReader) -> None:
    image = {"type": "image"}
    asked = [{"role": "user", "content": [image, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert reader.question(asked)[0] == "a\nb"
    assert reader.question([{"role": "user", "content": "<image>\nWhat?"}])[0] == "What?"
    assert reader.question([*asked, {"role": "assistant", "content": None}, {"role": "user", "content": "c"}])[0] == "c"
    for nothing in ([{"role": "user", "content": [image]}], [{"role": "user", "content": None}]):
        with pytest.raises(UsageError, match="the last user message has no text"):
            reader.question(nothing)


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


def test_a_template_may_not_make_half_characters(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    (bundle_copy / "chat_template.jinja").write_text("<image>{{ '\\ud83d' }}")
    with pytest.raises(UsageError, match="the text of the chat template is not valid UTF-8"):
        PromptReader(bundle).read("x")


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
