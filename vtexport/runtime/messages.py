"""Conversations as transformers takes them, checked and brought into the form its processor makes of them.

A message is `{"role": ..., "content": ...}`, its content a string or a list of parts: `{"type": "text", "text": ...}`,
`{"type": "image", ...}`, or OpenAI's `{"type": "image_url", "image_url": {"url": ...}}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtexport.bundle.manifest import ROLES
from vtexport.errors import InputError, UsageError, cut, printable

Messages = Sequence[Mapping[str, Any]]

SOURCES = ("image", "url", "path", "base64")  # keys of an image part that say which image it is
MAX_TEXT = 128 * 2**20  # characters of an image written into a conversation; a larger one belongs into a file
_ANY_MEDIA = ("", "application/octet-stream")  # types of data URLs that leave open what is in them
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")  # no name of an image file: those have a dot
_FORM = "a prompt is a string, or a list of messages with a role and content each"


@dataclass(frozen=True)
class ImageSource:
    """Source of an image as its part of a message names it: a path, a URL, base64 text, a PIL image or an array."""

    key: str  # one of `SOURCES`
    value: Any

    @property
    def summary(self) -> str:
        """The source for a sentence, without the bytes of an image in it."""
        if not isinstance(self.value, (str, os.PathLike)):
            return f"an object of type {type(self.value).__name__}"
        text = os.fspath(self.value)
        inside = self.key == "base64" or _is_data_url(text) or _BASE64.fullmatch(text)
        return "an image written into it" if inside else repr(cut(text, 80))


def normalised(messages: Messages, part_roles: Collection[str] = ()) -> list[dict[str, Any]]:
    """Messages as transformers' processor gives them to the template.

    Keys without a value (None) are dropped and `image_url` parts become image parts. Contents that are strings stay
    strings, but for roles in `part_roles` (`manifest.Text.part_roles`), whose template would lose them: there they
    become one text part.

    Raises:
        UsageError: something is no message or no part that can be taken, or a text is not valid UTF-8.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes, bytearray)):
        raise UsageError(f"{_FORM}, not {_kind(messages)}")
    if not messages:
        raise UsageError("the conversation is empty; give at least one message with a question about the image")
    if all(isinstance(each, (list, tuple)) for each in messages):
        raise UsageError("the prompt is a list of conversations; give one conversation, a list of messages")
    try:
        return [_message(each, f"message {number}", part_roles) for number, each in enumerate(messages, 1)]
    except RecursionError as error:
        raise UsageError("the messages are nested too deeply; give each a role and a content") from error


def image_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The image parts of normalised messages, in order."""
    contents = [message.get("content") for message in messages]
    return [
        part
        for content in contents
        if isinstance(content, (list, tuple))
        for part in content
        if part["type"] == "image"
    ]


def image_sources(prompt: str | Messages | None) -> list[ImageSource | None]:
    """The sources that a conversation's image parts name, in order, None for one that names none.

    Raises:
        UsageError: as `normalised`, or a part has several sources.
    """
    if prompt is None or isinstance(prompt, str):
        return []
    return [_source(part) for part in image_parts(normalised(prompt))]


def as_list(image: Any) -> list[Any] | None:
    """The images that an argument gives: None where it is left out, one alone as a list of one."""
    return None if image is None else list(image) if isinstance(image, (list, tuple)) else [image]


def choose_images(images: Sequence[Any] | None, prompt: str | Messages | None) -> list[tuple[Any, list[str]]]:
    """The images to look at, as `images.load_image` takes them, each with sentences on one that is passed over for it.

    `images` come first, as in transformers, where the conversation names the places of images and the images stand
    beside it; what the conversation's own image parts name is taken where `images` is None. Whether there are as many
    as the prompt has places for is not judged here (`PromptReader.render`).

    Raises:
        UsageError: `images` is None and there is no conversation, or a part of it names no image or one that cannot be
            taken.
        InputError: a part's image is too long a text.
    """
    sources = image_sources(prompt)
    if images is None:
        if prompt is None or isinstance(prompt, str):
            raise UsageError(
                "there is no image; give one, or a conversation whose image part names it "
                '({"type": "image", "path": ...}, or "url", "image" or "base64"); give [] to ask without an image'
            )
        return [(_named(source, number, len(sources)), []) for number, source in enumerate(sources, 1)]
    if len(images) != len(sources):  # a string, or a prompt that is refused
        return [(image, []) for image in images]
    return [(image, _passed_over(image, source)) for image, source in zip(images, sources, strict=True)]


def _named(source: ImageSource | None, number: int, count: int) -> Any:
    if source is not None:
        return load_source(source)
    which, wanted = (f": image part {number} of {count} names none", f"a list of {count}") if count > 1 else ("", "one")
    raise UsageError(
        f"there is no image{which}; give {wanted}, or a conversation whose image part names it "
        '({"type": "image", "path": ...}, or "url", "image" or "base64")'
    )


def _passed_over(image: Any, source: ImageSource | None) -> list[str]:
    if source is None or _is_same(image, source.value):
        return []
    return [f"the image argument was used, not the image that the conversation names ({source.summary})"]


def load_source(source: ImageSource) -> Any:
    """The image of a source as `images.load_image` takes it: a path or URL, a PIL image or an array.

    Base64 text becomes a `data:` URL.

    Raises:
        UsageError: it has another type, or is a `data:` URL of something else than an image.
        InputError: the text of an image is longer than `MAX_TEXT`.
    """
    value = source.value
    if not isinstance(value, str):
        if source.key == "image" or isinstance(value, os.PathLike):
            return value  # what else than an image it may be, `load_image` names
        raise UsageError(f"the image part has a {source.key} of type {type(value).__name__}; give a string")
    if not value.strip():
        raise UsageError(f"the image part has an empty {source.key}; give a path, a data URL or base64 text")
    if len(value) > MAX_TEXT:
        raise InputError(
            f"the image part has a {source.key} of {len(value):,} characters, more than {MAX_TEXT:,}; give the image's "
            "path instead"
        )
    if _is_data_url(value):
        value = value.strip()
        media = value[5:].partition(",")[0].partition(";")[0].strip().lower()
        if media not in _ANY_MEDIA and not media.startswith("image/"):
            shown = cut(printable(media), 40)
            raise UsageError(f"the image part's data URL is of type {shown}; give one that begins with data:image/")
        return value
    if source.key == "base64" or _BASE64.fullmatch(value):
        return f"data:image/*;base64,{value}"
    if value.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"the image part names {source.summary}, and vtexport fetches nothing; download the image first and give "
            "its path or a data URL"
        )
    return value


def check_utf8(text: str, what: str) -> None:
    """Refuses text that cannot be written as UTF-8: bytes that the shell passed on undecoded, or half characters.

    Raises:
        UsageError: `text` has a surrogate in it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # Python keeps an undecodable byte 0xNN of an argument as the surrogate U+DCNN.
        stray = f"the stray byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the surrogate U+{code:04X}"
        before = error.start
        raise UsageError(
            f"{what} is not valid UTF-8: it has {stray} behind {before} characters; write the text in UTF-8"
        ) from error


def _message(message: Any, where: str, part_roles: Collection[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{_FORM}; {where} is {_kind(message)}")
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise UsageError(f'{where} has no role; give "user" for a question, "assistant" for an answer')
    content = given.get("content")
    if isinstance(content, str):
        _check_texts({**given, "content": content}, where)
        if content and (role if role in ROLES else "user") in part_roles:
            given["content"] = [{"type": "text", "text": content}]
        return given
    if content is not None and not isinstance(content, (list, tuple)):
        raise UsageError(f"{where} has a content that is {_kind(content)}; give a string or a list of parts")
    _check_texts({key: value for key, value in given.items() if key != "content"}, where)
    if content is not None:
        parts = [_part(part, where) for part in content]
        given["content"] = parts if isinstance(content, list) else tuple(parts)
    return given


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        raise UsageError(f'{where} has a part that is a string; write it as {{"type": "text", "text": ...}}')
    if not isinstance(part, Mapping):
        raise UsageError(f"{where} has a part that is {_kind(part)}; a part is a dictionary with a type")
    kind = part.get("type")
    if kind is None:
        known = ", ".join(sorted(str(key) for key in part)[:5]) or "nothing"
        raise UsageError(f'{where} has a part without a type (it has {known}); add "type": "text" or "image"')
    if kind == "image_url" and "image_url" in part:
        named = part["image_url"]
        return {"type": "image", "url": named.get("url", "") if isinstance(named, Mapping) else named}
    if kind == "image_url":
        raise UsageError(f'{where} has a part of type image_url without "image_url"; add it, or give type "image"')
    if kind not in ("text", "image"):  # not a set: it may be anything
        shown = cut(printable(kind), 40)
        raise UsageError(f"{where} has a part of type {shown}; vtexport takes text, image and image_url")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise UsageError(f'{where} has a text part whose text is {_kind(part.get("text"))}; give a string as "text"')
    skipped = SOURCES if kind == "image" else ()  # a path may hold any byte
    _check_texts({key: value for key, value in part.items() if key not in skipped}, where)
    return dict(part)


def _check_texts(value: Any, where: str) -> None:
    """`check_utf8` of every string in `value`."""
    if isinstance(value, str):
        check_utf8(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(key, where)
            _check_texts(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_texts(inner, where)


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _source(part: Mapping[str, Any]) -> ImageSource | None:
    given = {key: part[key] for key in SOURCES if part.get(key) is not None}
    named = [ImageSource(key, value) for key, value in given.items() if not (isinstance(value, str) and value == "")]
    if len(named) > 1:
        keys = " and ".join(source.key for source in named)
        raise UsageError(f"the image part names its image several times ({keys}); leave one of them")
    return named[0] if named else None


def _is_same(image: Any, named: Any) -> bool:
    if image is named:
        return True
    if isinstance(image, (str, os.PathLike)) and isinstance(named, (str, os.PathLike)):
        return Path(image).absolute() == Path(named).absolute()
    if isinstance(image, np.ndarray) and isinstance(named, np.ndarray):
        return np.array_equal(image, named)
    return isinstance(image, Image.Image) and isinstance(named, Image.Image) and image == named


def _is_data_url(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == "data:"
