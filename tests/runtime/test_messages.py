"""Messages: what is taken, what is named in a refusal, and images that stand inside them."""

from __future__ import annotations

import base64
import io
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtexport.errors import InputError, UsageError, VtexportError
from vtexport.runtime import messages as module
from vtexport.runtime.images import load_image
from vtexport.runtime.messages import ImageSource, choose_images, image_sources, load_source, normalised

QUESTION = {"type": "text", "text": "What?"}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def choose_image(image: Any, messages: Any) -> tuple[Any, list[str]]:
    """Of one image."""
    (chosen,) = choose_images(None if image is None else [image], messages)
    return chosen


def encoded(format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, format_)
    return buffer.getvalue()


PNG = encoded()
BASE64 = base64.b64encode(PNG).decode()


def test_as_the_library_has_them() -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "name": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/x.jpg"}}, QUESTION]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert normalised(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "url": "/x.jpg"}, QUESTION]},
        {"role": "assistant", "tool_calls": []},
    ]


def test_strings_become_parts_where_the_template_knows_no_strings() -> None:
    messages = [{"role": role, "content": "Hm."} for role in ("system", "user", "critic")]
    part = [{"type": "text", "text": "Hm."}]
    assert [each["content"] for each in normalised(messages, ["user"])] == ["Hm.", part, part]
    assert [each["content"] for each in normalised(messages, ["system"])] == [part, "Hm.", "Hm."]
    assert normalised([{"role": "user", "content": ""}], ["user"]) == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (user({"type": "video", "video": "x.mp4"}), "message 1 has a part of type video; vtexport takes text, image"),
        (user({"type": "audio"}), "part of type audio; vtexport takes text, image and image_url"),
        (user({"type": "input_image", "image_url": "x"}), "part of type input_image; vtexport takes text"),
        (user({"type": "input_text", "text": "x"}), "part of type input_text; vtexport takes text"),
        (user({"type": ["image"]}), "part of type ['image']; vtexport takes text"),
        (user({"type": "image_url"}), 'part of type image_url without "image_url"'),
        (user({"text": "x"}), 'part without a type (it has text); add "type": "text" or "image"'),
        (user({}), "part without a type (it has nothing)"),
        (user("What?"), 'part that is a string; write it as {"type": "text", "text": ...}'),
        (user(5), "part that is of type int; a part is a dictionary with a type"),
        (user(None), "part that is None"),
        (user({"type": "text"}), "text part whose text is None; give a string"),
        (user({"type": "text", "text": ["x"]}), "text part whose text is of type list"),
        ([{"role": "user", "content": 5}], "message 1 has a content that is of type int"),
        ([{"role": "user", "content": {"type": "text"}}], "message 1 has a content that is of type dict"),
        ([{"role": "user", "content": b"x"}], "message 1 has a content that is of type bytes"),
        ([*user(QUESTION), {"content": "x"}], 'message 2 has no role; give "user" for a question'),
        ([{"role": 5, "content": "x"}], "message 1 has no role"),
        ([*user(QUESTION), "x"], "a prompt is a string, or a list of messages with a role and content each; message 2"),
        ([None], "message 1 is None"),
        ([], "the conversation is empty"),
        ([user(QUESTION)], "the prompt is a list of conversations; give one conversation"),
        (
            {"role": "user"},
            "a prompt is a string, or a list of messages with a role and content each, not of type dict",
        ),
        (5, "not of type int"),
        (None, "not None"),
    ],
)
def test_what_cannot_be_taken_is_named(messages: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalised(messages)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_messages_without_an_end() -> None:
    endless: dict[str, Any] = {"role": "user", "content": [QUESTION]}
    endless["more"] = endless
    with pytest.raises(UsageError, match="nested too deeply"):
        normalised([endless])


@pytest.mark.parametrize("place", ["text", "role", "name", "content", "key", "deep"])
@pytest.mark.parametrize(("stray", "said"), [("\udce9", "the stray byte 0xe9"), ("\ud83d", "the surrogate U+D83D")])
def test_stray_bytes_are_named_wherever_they_are(place: str, stray: str, said: str) -> None:
    word = f"caf{stray}"
    further: dict[str, Any] = {
        "text": {"content": [{"type": "text", "text": word}]}, "role": {"role": word}, "name": {"name": word},
        "content": {"content": word}, "key": {word: 1}, "deep": {"tool_calls": [{"function": {"arguments": (word,)}}]},
    }[place]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        normalised([{"role": "user", "content": [QUESTION], **further}])
    assert f"message 1 is not valid UTF-8: it has {said} behind 3 characters" in str(caught.value)


def test_a_path_in_a_message_may_hold_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.png"
    path.write_bytes(PNG)
    messages = user({"type": "image", "path": str(path)}, QUESTION)
    assert normalised(messages) == messages
    assert choose_image(None, messages) == (str(path), [])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image_url", "url", "image"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(messages=anything)
def test_nothing_else_than_sentences(messages: Any) -> None:
    said = ""
    try:
        normalised(messages)
        choose_images(None, messages)
    except VtexportError as error:
        said = str(error)
    assert len(said) < 300


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "url": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "image": f"DATA:Image/PNG;BASE64,{BASE64}"},
        {"type": "image_url", "image_url": {"url": f" \n data:image/png;base64,{BASE64}\n"}},
        {"type": "image", "url": f"data:application/octet-stream;base64,{BASE64}"},
        {"type": "image", "url": f"data:;base64,{BASE64}"},
        {"type": "image", "url": f"data:image/png;charset=x;base64,{urllib.parse.quote(BASE64, safe='')}"},
        {"type": "image", "url": f"data:image/png,{urllib.parse.quote_from_bytes(PNG)}"},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": "\n".join(BASE64[at : at + 20] for at in range(0, len(BASE64), 20))},
        {"type": "image", "base64": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "image": BASE64},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "image_url", "image_url": f"data:image/bmp;base64,{base64.b64encode(encoded('BMP')).decode()}"},
    ],
)
def test_images_written_into_messages(part: dict[str, Any]) -> None:
    image, warnings = choose_image(None, user(part, QUESTION))
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(Image.open(io.BytesIO(PNG))))
    assert warnings == []


@pytest.mark.parametrize("host", ["", "localhost"])
def test_urls_of_files(tmp_path: Path, host: str) -> None:
    path = tmp_path / "a b#ü?.png"
    path.write_bytes(PNG)
    for written in (urllib.parse.quote(str(path)), str(path)):
        image, _ = choose_image(None, user({"type": "image", "url": f"file://{host}{written}"}))
        assert load_image(image).size == (4, 4)


def test_paths_and_objects(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 3), np.uint8)
    for key, value in (("path", "/x.jpg"), ("url", "/x.jpg"), ("path", tmp_path), ("image", array), ("image", "x.jpg")):
        assert choose_image(None, user({"type": "image", key: value}))[0] is value


@pytest.mark.parametrize(
    ("part", "error", "said"),
    [
        (
            {"url": "https://x.org/a.jpg"},
            UsageError,
            "names 'https://x.org/a.jpg', and vtexport fetches nothing; downl",
        ),
        ({"url": "HTTP://x.org/a.jpg"}, UsageError, "download the image first and give its path or a data URL"),
        ({"url": "https://x.org/" + "a" * 9000}, UsageError, "fetches nothing"),
        ({"url": "s3://bucket/a.jpg"}, InputError, "is a URL, and images are not downloaded"),
        ({"url": "file://server/a.jpg"}, InputError, "names a file of another machine"),
        ({"url": f"data:text/plain;base64,{BASE64}"}, UsageError, "is of type text/plain; give one that begins with"),
        ({"url": f"data:video/{'x' * 900};base64,{BASE64}"}, UsageError, "is of type video/xxx"),
        ({"url": "data:image/png;base64"}, InputError, "has no comma"),
        ({"url": "data:image/png;base64,%%%"}, InputError, "is not valid base64"),
        ({"url": "data:image/png;base64,é\udce9"}, InputError, "is not valid base64"),
        ({"url": f"data:image/png;base64,{BASE64[:40]}"}, InputError, "cannot be decoded"),
        ({"url": "data:image/png;base64,"}, InputError, "is empty"),
        ({"url": "data:image/svg+xml,<svg/>"}, InputError, "the data URL is"),
        ({"base64": "photo.jpg"}, InputError, "is not valid base64"),
        (
            {"base64": base64.b64encode(encoded("EPS")).decode()},
            InputError,
            "a PostScript (EPS) file",
        ),
        ({"base64": b"x"}, UsageError, "has a base64 of type bytes; give a string"),
        ({"url": 5}, UsageError, "has a url of type int; give a string"),
        ({"image": 5}, UsageError, "an image is a path, a PIL image or a NumPy array, not int"),
        ({"path": "  "}, UsageError, "has an empty path"),
        ({"path": "/nowhere.jpg"}, InputError, "does not exist"),
        ({"url": "/x.jpg", "path": "/y.jpg"}, UsageError, "names its image several times (url and path)"),
        ({}, UsageError, "there is no image; give one, or a conversation whose image part names it"),
        ({"url": None}, UsageError, "there is no image"),
        ({"url": ""}, UsageError, "there is no image"),
    ],
)
def test_sources_that_cannot_be_taken(part: dict[str, Any], error: type[VtexportError], said: str) -> None:
    with pytest.raises(error) as caught:
        load_image(choose_image(None, user({"type": "image", **part}, QUESTION))[0])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_images_that_are_too_long_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT", len(BASE64) - 1)
    with pytest.raises(InputError, match=r"has a base64 of .* characters, more than .*; give the image's path"):
        load_source(ImageSource("base64", BASE64))


def test_an_image_given_beside_the_messages_comes_first(tmp_path: Path) -> None:
    bare = user({"type": "image"}, QUESTION)
    named = user({"type": "image", "path": "photo.jpg"}, QUESTION)
    array = np.zeros((2, 2, 3), np.uint8)
    assert choose_image("other.jpg", "What?") == ("other.jpg", [])
    assert choose_image("other.jpg", None) == ("other.jpg", [])
    assert choose_image("other.jpg", bare) == ("other.jpg", [])
    assert choose_image("photo.jpg", named) == ("photo.jpg", [])
    assert choose_image(Path("photo.jpg").absolute(), named)[1] == []
    assert choose_image(array, user({"type": "image", "image": array}))[1] == []
    assert choose_image(array, user({"type": "image", "image": array.copy()}))[1] == []
    image, warnings = choose_image("other.jpg", named)
    assert image == "other.jpg"
    assert warnings == ["the image argument was used, not the image that the conversation names ('photo.jpg')"]
    assert "an image written into it" in choose_image(array, user({"type": "image", "base64": BASE64}))[1][0]
    assert "an object of type ndarray" in choose_image("x.jpg", user({"type": "image", "image": array}))[1][0]


def test_several_images() -> None:
    one, two, three = ({"type": "image", "path": name} for name in "abc")
    answer = {"role": "assistant", "content": "Yes."}
    messages = [*user(one, QUESTION, two), answer, *user({"type": "image"}, QUESTION)]
    assert [source and source.value for source in image_sources(messages)] == ["a", "b", None]
    with pytest.raises(UsageError, match=r"image part 3 of 3 names none; give a list of 3, or"):
        choose_images(None, messages)
    assert choose_images(None, [*user(one, QUESTION, two), answer, *user(three)]) == [("a", []), ("b", []), ("c", [])]
    (first, said), second, third = choose_images(["x", "b", "z"], messages)
    assert first == "x"
    assert said == ["the image argument was used, not the image that the conversation names ('a')"]
    assert (second, third) == (("b", []), ("z", []))
    with pytest.raises(UsageError, match=r"names its image several times \(url and path\)"):
        image_sources(user(one, {"type": "image", "path": "a", "url": "b"}))


def test_no_image() -> None:
    alone = [*user(QUESTION), {"role": "assistant", "content": "Yes."}]
    assert choose_images(None, alone) == choose_images([], alone) == choose_images([], "What?") == []
    for forgotten in ("What?", None):
        with pytest.raises(UsageError, match=r"there is no image; give one.*; give \[\] to ask without an image"):
            choose_images(None, forgotten)
