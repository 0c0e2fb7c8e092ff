"""Requests read strictly: what is taken, and what is refused with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtexport.serve.chat import Chat, read_chat
from vtexport.serve.refusal import RequestError
from vtexport.serve.settings import Settings

ASK = [{"role": "user", "content": "x?"}]


def read(**fields: Any) -> Chat:
    return read_chat(json.dumps({"model": "m", "messages": ASK, **fields}).encode(), Settings())


def test_what_is_left_out() -> None:
    chat = read()
    assert (chat.messages, chat.images, chat.max_tokens) == (ASK, [], None)
    assert (chat.temperature, chat.top_p, chat.seed, chat.stop) == (0.0, 1.0, None, [])
    assert (chat.stream, chat.include_usage) == (False, False)


def test_what_is_taken() -> None:
    content = [
        {"type": "text", "text": "What"},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
        {"type": "text", "text": "is it?"},
    ]
    chat = read(
        messages=[{"role": "developer", "content": "Be brief.", "name": None}, {"role": "user", "content": content}],
        max_completion_tokens=5, temperature=1, top_p=0.5, seed=7, stop="\n", stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert [message["role"] for message in chat.messages] == ["system", "user"]
    assert [part["type"] for part in chat.messages[1]["content"]] == ["text", "image", "text"]
    assert chat.images == ["data:x"]
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.seed, chat.stop) == (5, 1.0, 0.5, 7, ["\n"])
    assert chat.include_usage


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1}, {"tools": []}, {"tools": None}, {"response_format": {"type": "text"}}, {"frequency_penalty": 0},
        {"presence_penalty": 0.0}, {"logprobs": False}, {"logit_bias": {}}, {"user": "me"}, {"tool_choice": "auto"},
        {"max_tokens": 4, "max_completion_tokens": 4}, {"stop": []}, {"stop": ["a", "b"]}, {"seed": None},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_taken(neutral: dict[str, Any]) -> None:
    assert read(**neutral).messages == ASK


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "n is 2, which this server does not do"),
        ({"n": True}, "n is true, which this server does not do"),
        ({"tools": [{"type": "function"}]}, "tools is "),
        ({"response_format": {"type": "json_schema"}}, "response_format is "),
        ({"logprobs": True}, "logprobs is true"),
        ({"logit_bias": {str(n): 1 for n in range(100)}}, "logit_bias is a object of 100"),
        ({"top_k": 5}, 'the field "top_k" is not known'),
        ({"model": 5}, "model is 5; give a string"),
        ({"model": None}, "there is no model"),
        ({"messages": []}, "there are no messages"),
        ({"messages": None}, "there are no messages"),
        ({"messages": "x?"}, "messages is a string"),
        ({"messages": ["x?"]}, r"messages\[0\] is a string"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has the role null"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'has the role "tool"; give one of system'),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r'has the role \["user"\]'),
        ({"messages": [{"role": "user"}]}, "has a content that is a null"),
        ({"messages": [{"role": "user", "content": 5}]}, "has a content that is a number"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"messages\[0\].content\[0\] is a string"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 'is of type "input_audio"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "is not of the form"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}]}, "an image_url that"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, '"tool_calls", which'),
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number from 1 to 4096"),
        ({"max_tokens": 4097}, "max_tokens is 4097"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "differ"),
        ({"temperature": -1}, "temperature is -1; give a number from 0 to 2"),
        ({"temperature": "hot"}, 'temperature is "hot"'),
        ({"temperature": True}, "temperature is true"),
        ({"top_p": 0}, "top_p is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**30}, "seed is "),
        ({"stop": ["a"] * 5}, "stop is a list; give a string or a list of up to 4"),
        ({"stop": [""]}, 'stop has ""'),
        ({"stop": 5}, "stop is a number"),
        ({"stream": "yes"}, 'stream is "yes"'),
        ({"stream_options": {"include_usage": True}}, "stream_options is for streams"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options is "),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as found:
        read(**fields)
    assert (found.value.status, len(str(found.value)) <= 300) == (400, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"model": NaN}'])
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(RequestError, match="the body is "):
        read_chat(body, Settings())


def test_images_are_counted_and_stand_in_user_messages() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image] * 3}]}
    with pytest.raises(RequestError, match="more than 2 images"):
        read_chat(json.dumps(body).encode(), Settings(max_images=2))
    body["messages"] = [{"role": "assistant", "content": [image]}]
    with pytest.raises(RequestError, match="an image in a message of the role assistant"):
        read_chat(json.dumps(body).encode(), Settings())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["messages", "model", "stop", "stream", "stream_options", "n", "tools", "max_tokens", "temperature", "role"]
)


@settings(max_examples=300)
@given(st.dictionaries(NAMES, VALUES, max_size=4), VALUES)
def test_anything_is_read_or_refused_in_a_sentence(fields: dict[str, Any], content: Any) -> None:
    for body in (fields, {**fields, "model": "m", "messages": [{"role": "user", "content": content}]}):
        refused = None
        try:
            read_chat(json.dumps(body).encode(), Settings())
        except RequestError as error:
            refused = error
        assert refused is None or (refused.status == 400 and len(str(refused)) <= 300 and str(refused).isprintable())
