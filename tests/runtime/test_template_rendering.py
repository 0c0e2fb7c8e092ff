"""Chat templates render as transformers renders them, or are refused where it raises."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st
from text_checkpoint import processor_of, write_text_checkpoint

from vtexport.errors import BundleError, UsageError
from vtexport.runtime.chat_template import compile_template, plain, render
from vtexport.runtime.messages import normalised

IMAGE = {"type": "image"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


QUESTION = {"role": "user", "content": [IMAGE, text("What is this?")]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [QUESTION],
    "a system part": [{"role": "system", "content": [text("Be brief.")]}, QUESTION],
    "a system string": [{"role": "system", "content": "Be brief.\n"}, QUESTION],
    "three turns": [
        QUESTION, {"role": "assistant", "content": [text("A cup.")]}, {"role": "user", "content": [text("Of what?")]},
    ],
    "strings": [
        {"role": "user", "content": " <image>\nWhat is 'this'? "}, {"role": "assistant", "content": "A \"cup\"."},
        {"role": "user", "content": "Of what, ä 你 😀?"},
    ],
    "image behind a text": [{"role": "user", "content": [text("see"), {"type": "image", "url": "/x.jpg"}, text("?")]}],
    "image_url": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "/x.jpg", "detail": "high"}}, text("What?"),
        {"type": "image_url", "image_url": "data:,x"}, {"type": "image_url", "image_url": {}},
    ]}],
    "None": [{**QUESTION, "name": None, "tool_calls": None}, {"role": "assistant", "content": None}],
    "other keys": [{**QUESTION, "name": "Ann", "weight": 0.5}, {"role": "tool", "content": "7", "tool_call_id": "x1"}],
    "tool calls": [QUESTION, {"role": "assistant", "tool_calls": [
        {"id": "x1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, None, True, 2.5]}}},
    ]}],
    "reasoning": [QUESTION, {"role": "assistant", "reasoning": "hm", "content": "A cup."},
                  {"role": "assistant", "thinking": "so", "content": "A cup."},
                  {"role": "assistant", "thinking": "so", "reasoning_content": "thus", "content": "A cup."}],
    "a tuple": [{"role": "user", "content": (IMAGE, text("What?"))}],
    "no parts": [{"role": "user", "content": []}, {"role": "user", "content": ""}],
    "objects": [{"role": "user", "content": [{"type": "image", "image": np.zeros((2, 2, 3), np.uint8)}, text("?")]}],
    "two of a role": [QUESTION, {"role": "user", "content": [text("And?")]}],
    "other roles": [{"role": "developer", "content": [text("x")]}, {"role": "Ünknown", "content": "y"}],
}  # fmt: skip


def require_present_semantics() -> None:
    """The device renders as recent versions of transformers do, whichever version built the bundle."""
    from transformers.utils import chat_template_utils

    if not hasattr(chat_template_utils, "_plain_template_data"):
        pytest.skip("this version of transformers gives templates other data; the device does as later ones")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    require_present_semantics()
    return processor_of(write_text_checkpoint(tmp_path_factory.mktemp("text") / "llava"))


def library(processor: Any, template: str, messages: list[dict[str, Any]]) -> str | None:
    """transformers' text, None where it raises."""
    try:
        return processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)
    except Exception:
        return None


def own(processor: Any, template: str, messages: list[dict[str, Any]]) -> str | None:
    """The device's text, None where it refuses."""
    try:
        tokens = processor.tokenizer.special_tokens_map
        return render(compile_template(template), normalised(messages), tokens)
    except (BundleError, UsageError):
        return None


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_texts_are_transformers(processor: Any, template: str) -> None:
    for name, messages in CONVERSATIONS.items():
        assert own(processor, template, messages) == library(processor, template, messages), name


def test_most_templates_render(processor: Any) -> None:
    """So that the test above does not compare refusals alone."""
    texts = [library(processor, template, CONVERSATIONS["a question"]) for template in TEMPLATES.values()]
    assert sum(text is not None for text in texts) > 0.7 * len(texts)
    assert sum(text is None for text in texts) > 20


words = st.text(st.characters(codec="utf-8"), max_size=12)
parts = st.lists(
    st.one_of(
        st.builds(text, words),
        st.just(IMAGE),
        st.builds(lambda url: {"type": "image", "url": url}, words),
        st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, words),
    ),
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2) | st.tuples(inner),
    max_leaves=6,
)
conversations = st.lists(
    st.builds(
        lambda role, content, further: {**further, "role": role, "content": content},
        st.sampled_from(["user", "assistant", "system", "tool", "x"]),
        words | parts | st.none(),
        st.dictionaries(
            st.sampled_from(["name", "tool_calls", "thinking", "reasoning", "reasoning_content", "id"]), json_values
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(messages=conversations, names=st.lists(st.sampled_from(sorted(TEMPLATES)), min_size=3, max_size=3, unique=True))
def test_any_conversation_renders_as_in_transformers(processor: Any, messages: Any, names: list[str]) -> None:
    for name in [*names, "whole: everything", "whole: llava, rendering images first", "whole: strings or parts"]:
        template = TEMPLATES[name]
        assert own(processor, template, messages) == library(processor, template, messages), name


class _Colour(str, enum.Enum):
    RED = "red"


class _Model:
    def model_dump(self) -> dict[str, Any]:
        return {"inner": np.float32(0.5)}


@dataclasses.dataclass
class _Record:
    name: str
    pixels: Any


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, "x", _Colour.RED, np.int64(3), np.float64(2.5), np.bool_(False), np.str_("n"),
        np.datetime64("2020-01-01"), b"bytes", {1, 2}, object, len, range(3), 1 + 2j, Path("x"),
        {"a": (1, [np.int8(2)]), 5: _Colour.RED}, _Record("x", np.zeros(2)), _Model(), _Record, np.zeros(3),
    ],
)  # fmt: skip
def test_data_is_made_plain_as_transformers_makes_it(value: Any) -> None:
    require_present_semantics()
    from transformers.utils.chat_template_utils import _plain_template_data

    expected = _plain_template_data(value)
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_messages_are_not_changed(processor: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": "/x.jpg"}], "thinking": "hm"}]
    own(processor, "{{ messages }}", messages)
    assert messages == [{"role": "user", "content": [{"type": "image_url", "image_url": "/x.jpg"}], "thinking": "hm"}]


def test_what_a_template_says_at_length_is_shortened() -> None:
    template = compile_template("{{ raise_exception('word ' * 5000) }}")
    with pytest.raises(UsageError) as caught:
        render(template, [{"role": "user"}], {})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", ["{% if", "{" * 2000, "{{ 1 | nofilter }}", "{% for m in messages %}"])
def test_what_is_no_template(source: str) -> None:
    with pytest.raises(BundleError, match=r"is not a template.*build or copy the bundle again"):
        compile_template(source)
