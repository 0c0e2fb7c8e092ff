"""Images by data: URLs, and files of the folder that is allowed."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import pytest

from vtexport.serve.pictures import PictureLoader
from vtexport.serve.refusal import RequestError
from vtexport.serve.settings import Settings


async def no_fetch(url: str) -> bytes:
    return b"fetched " + url.encode()


def load(url: str, **settings: Any) -> bytes:
    return asyncio.run(PictureLoader(Settings(**settings), no_fetch)(url))


@pytest.mark.parametrize("size", [1, 10, 400_000])
@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:;base64,", "data:image/jpeg;name=a.jpg;base64,"])
def test_data_urls(head: str, size: int) -> None:
    data = os.urandom(size)
    written = base64.b64encode(data).decode()
    assert load(head + written) == data
    assert load(head + written.rstrip("=") + "\n") == data


def test_data_urls_without_base64() -> None:
    assert load("data:image/svg+xml,%00a%FF") == b"\0a\xff"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,a*b", "is not valid base64"),
        ("data:image/png;base64,ü", "is not valid base64"),
        ("data:text/html;base64,aaaa", "is of type text/html"),
        ("data:image/png;base64," + "A" * 200, "more than 100 bytes"),
        ("", "is empty"),
        ("/etc/passwd", "opens no files"),
        ("file:///etc/passwd", "opens no files"),
        ("ftp://a.example/x", "opens no files"),
    ],
)
def test_refused(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(url, max_image=100)


def test_http_goes_to_the_fetcher() -> None:
    assert load(" HTTPS://a.example/x ") == b"fetched HTTPS://a.example/x"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "in side"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "a.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "near").symlink_to("deep/a.png")
    os.mkfifo(inside / "pipe")
    return inside


def test_files_of_the_folder(folder: Path) -> None:
    path = folder / "deep" / "a.png"
    for url in (str(path), path.as_uri(), f"file:{path}", (folder / "near").as_uri(), f"file://localhost{path}"):
        assert load(url, allow_files=folder) == b"inside"
    with pytest.raises(RequestError, match="has more than 3 bytes"):
        load(str(path), allow_files=folder, max_image=3)


def test_files_elsewhere(folder: Path) -> None:
    """They are refused in the same words whether they exist or not."""
    said = set()
    elsewhere = ["../secret", "../nothing", "link", "deep/../../secret"]
    urls = [f"{folder}/{each}" for each in elsewhere] + [(folder / each).as_uri() for each in elsewhere]
    urls += ["/etc/passwd", "relative.png", "file://other/a.png", "gopher:x", "file:///%00", "/" + "x" * 300]
    for url in urls:
        with pytest.raises(RequestError, match="is not in the folder") as found:
            load(url, allow_files=folder)
        said.add(str(found.value).partition(" is not in ")[2])
    assert len(said) == 1


def test_what_is_no_file(folder: Path) -> None:
    with pytest.raises(RequestError, match="cannot be opened"):
        load(str(folder / "nothing"), allow_files=folder)
    for name in ("deep", "pipe"):
        with pytest.raises(RequestError, match=r"is no file|cannot be opened"):
            load(str(folder / name), allow_files=folder)
