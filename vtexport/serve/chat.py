"""Requests for a chat completion, read strictly: what is not done is refused by name and never passed over.

The form is that of OpenAI's `POST /v1/chat/completions`. A field with its neutral value, such as `"n": 1` or
`"tools": []`, asks for nothing and is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vtexport.errors import UsageError, cut, printable
from vtexport.runtime.messages import check_utf8
from vtexport.serve.refusal import wrong
from vtexport.serve.settings import Settings

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}  # change no answer
# Values of fields that ask for what is not done, which ask for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}
_KNOWN = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream"),
    *("stream_options", *_IGNORED, *_NEUTRAL),
}
_MESSAGE_KEYS = {"role", "content", "name"}
_DETAILS = ("auto", "low", "high")
MAX_STOPS, MAX_STOP = 4, 256  # strings, and characters of each


@dataclass(frozen=True)
class Chat:
    """One request, read.

    Attributes:
        model: Name that was asked for.
        messages: As `Pipeline.stream` takes them, with a place for each image.
        images: URLs of the images in order.
        max_tokens: None where it is left out.
        temperature: 0, for the likeliest token, where it is left out.
        top_p: 1 where it is left out.
        seed: None where it is left out.
        stop: Strings at which the answer ends.
        stream: True for server-sent events.
        include_usage: True for a last event with the usage.
    """

    model: str
    messages: list[dict[str, Any]]
    images: list[str]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: list[str]
    stream: bool
    include_usage: bool


def read_chat(body: bytes, settings: Settings) -> Chat:
    """A request's body, read.

    Raises:
        RequestError: it is no JSON object, or a field is missing, not known, of a wrong type, or for what is not done.
    """
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = cut(printable(error), 100)
        raise wrong(f"the body is not JSON ({said}); send a JSON object with model and messages") from error
    if not isinstance(given, dict):
        raise wrong(f"the body is a JSON {_kind(given)}; send a JSON object with model and messages")
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in _KNOWN:
            raise wrong(f"the field {_shown(name)} is not known; leave it out", cut(name, 40))
        if name in _NEUTRAL and not any(_same(value, each) for each in _NEUTRAL[name]):
            raise wrong(f"{name} is {_shown(value)}, which this server does not do; leave it out", name)
    if "model" not in given:
        raise wrong("there is no model; give one of GET /v1/models", "model")
    read = _Reader(settings)
    messages = read.messages(given.get("messages"))
    return Chat(
        model=_take(given, "model", lambda value: isinstance(value, str), "a string"),
        messages=messages,
        images=read.images,
        max_tokens=_max_tokens(given, settings),
        temperature=float(_take(given, "temperature", _between(0, 2), "a number from 0 to 2", 0.0)),
        top_p=float(
            _take(given, "top_p", lambda v: _between(0, 1)(v) and v > 0, "a number above 0 and at most 1", 1.0)
        ),
        seed=_take(given, "seed", lambda value: _whole(value, 0, 2**63 - 1), "a whole number from 0", None),
        stop=_stop(given.get("stop")),
        stream=_take(given, "stream", lambda value: isinstance(value, bool), "true or false", False),
        include_usage=_include_usage(given),
    )


class _Reader:
    """Messages of one request, with the URLs of their images in order."""

    def __init__(self, settings: Settings):
        self._most = settings.max_images
        self.images: list[str] = []

    def messages(self, given: Any) -> list[dict[str, Any]]:
        if not isinstance(given, list) or not given:
            what = "there are no messages" if given is None or given == [] else f"messages is a {_kind(given)}"
            raise wrong(f"{what}; give a list with at least one message", "messages")
        return [self._message(each, f"messages[{number}]") for number, each in enumerate(given)]

    def _message(self, given: Any, where: str) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise wrong(f"{where} is a {_kind(given)}; give an object with role and content", where)
        given = {name: value for name, value in given.items() if value not in (None, [])}
        for name in given:
            if name not in _MESSAGE_KEYS:
                raise wrong(f"{where} has {_shown(name)}, which this server does not do; give role and content", where)
        role, content = given.get("role"), given.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise wrong(f"{where} has the role {_shown(role)}; give one of {', '.join(ROLES)}", where)
        if isinstance(content, str):
            return {"role": ROLES[role], "content": _text(content, where)}
        if not isinstance(content, list):
            raise wrong(f"{where} has a content that is a {_kind(content)}; give a string or a list of parts", where)
        parts = [self._part(each, f"{where}.content[{number}]", role) for number, each in enumerate(content)]
        return {"role": ROLES[role], "content": parts}

    def _part(self, given: Any, where: str, role: str) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise wrong(f"{where} is a {_kind(given)}; give a part of type text or image_url", where)
        kind = given.get("type")
        if kind == "text" and given.keys() == {"type", "text"} and isinstance(given["text"], str):
            return {"type": "text", "text": _text(given["text"], where)}
        if kind == "image_url" and given.keys() == {"type", "image_url"}:
            self.images.append(self._url(given["image_url"], where, role))
            return {"type": "image"}
        if kind in ("text", "image_url"):
            form = '"text": a string' if kind == "text" else '"image_url": {"url": ...}'
            raise wrong(f'{where} is not of the form {{"type": "{kind}", {form}}}; write it so', where)
        raise wrong(f"{where} is of type {_shown(kind)}, which this server does not do; give text or image_url", where)

    def _url(self, given: Any, where: str, role: str) -> str:
        if role != "user":
            raise wrong(f"{where} is an image in a message of the role {role}; put images into user messages", where)
        if len(self.images) >= self._most:
            raise wrong(f"the request has more than {self._most} images, the most that are taken; send fewer", where)
        if not isinstance(given, dict) or not isinstance(given.get("url"), str) or given.keys() - {"url", "detail"}:
            raise wrong(f'{where} has an image_url that is not {{"url": a string}}; write it so', where)
        if given.get("detail") is not None and given["detail"] not in _DETAILS:
            raise wrong(f"{where} has the detail {_shown(given['detail'])}; give one of {', '.join(_DETAILS)}", where)
        url: str = given["url"]
        return url


def _text(text: str, where: str) -> str:
    try:
        check_utf8(text, where)
    except UsageError as error:
        raise wrong(str(error), where) from error
    return text


def _max_tokens(given: Mapping[str, Any], settings: Settings) -> int | None:
    named = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    if len(named) == 2 and given[named[0]] != given[named[1]]:
        raise wrong("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    most = settings.max_tokens
    for name in named:
        taken: int = _take(given, name, lambda value: _whole(value, 1, most), f"a whole number from 1 to {most}")
        return taken
    return None


def _stop(given: Any) -> list[str]:
    strings = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(strings, list) or len(strings) > MAX_STOPS:
        raise wrong(f"stop is a {_kind(given)}; give a string or a list of up to {MAX_STOPS}", "stop")
    for each in strings:
        if not isinstance(each, str) or not 1 <= len(each) <= MAX_STOP:
            raise wrong(f"stop has {_shown(each)}; give strings of 1 to {MAX_STOP} characters", "stop")
    return strings


def _include_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not given.get("stream"):
        raise wrong("stream_options is for streams; set stream to true or leave it out", "stream_options")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise wrong(f'stream_options is {_shown(options)}; give {{"include_usage": true}}', "stream_options")
    if not isinstance(options.get("include_usage", False), bool):
        raise wrong(f"include_usage is {_shown(options['include_usage'])}; give true or false", "stream_options")
    return bool(options.get("include_usage"))


def _take(given: Mapping[str, Any], name: str, fits: Callable[[Any], bool], wanted: str, default: Any = None) -> Any:
    value = given.get(name, default)
    if name in given and not fits(value):
        raise wrong(f"{name} is {_shown(value)}; give {wanted}", name)
    return value


def _between(least: float, most: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and least <= value <= most

    return fits


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _same(value: Any, neutral: Any) -> bool:
    """Equality in which true is not 1."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)) and len(value) > 8:
        return f"a {_kind(value)} of {len(value)}"
    text = cut(value, 200) if isinstance(value, str) else value
    return cut(printable(msgspec.json.encode(text).decode(errors="replace")), 60)
