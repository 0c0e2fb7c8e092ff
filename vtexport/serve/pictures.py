"""The bytes of a request's images: from data: URLs, by HTTP(S), or from the folder that is allowed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from vtexport.errors import cut, printable, quoted
from vtexport.serve.refusal import RequestError, wrong
from vtexport.serve.settings import Settings

_IN_A_THREAD = 2**18  # characters from which on decoding them would hold up other requests
_TYPES = ("", "application/octet-stream")


class PictureLoader:
    """Loads images by their URL.

    Args:
        settings: of the server.
        fetch: gives the bytes behind an http(s) URL.
    """

    def __init__(self, settings: Settings, fetch: Callable[[str], Awaitable[bytes]]):
        self._settings, self._fetch = settings, fetch
        self._folder = settings.allow_files.resolve() if settings.allow_files is not None else None

    async def __call__(self, url: str) -> bytes:
        """The bytes of one image.

        Raises:
            RequestError: it cannot be had, or is not to be had by a client of this server.
        """
        url = url.strip()
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            if len(url) < _IN_A_THREAD:
                return self._data(url)
            return await asyncio.to_thread(self._data, url)
        if scheme in ("http", "https"):
            return await self._fetch(url)
        if not url:
            raise wrong("an image_url is empty; give a data: or http(s) URL")
        return await asyncio.to_thread(self._file, url)

    def _data(self, url: str) -> bytes:
        head, comma, content = url.partition(",")
        shown = cut(printable(head), 60)
        if not comma or len(head) > 200:
            raise wrong(f"the image_url {shown} has no comma; give data:image/png;base64, and the image's bytes")
        media = head[5:].partition(";")[0].strip().lower()
        if media not in _TYPES and not media.startswith("image/"):
            raise wrong(f"the image_url is of type {cut(printable(media), 60)}; give one that begins with data:image/")
        try:
            data = unquote_to_bytes(content) if "%" in content or not _is_base64(head) else content.encode("ascii")
            if _is_base64(head):
                data = re.sub(rb"\s", b"", data)
                data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong(
                f"the image_url {shown} is not valid base64 ({quoted(error, limit=80)}); encode the image's bytes again"
            ) from error
        if len(data) > self._settings.max_image:
            raise self._too_large("an image")
        return data

    def _file(self, url: str) -> bytes:
        if self._folder is None:
            raise wrong("this server opens no files for image_url; send the image as a data: URL")
        shown = cut(printable(url), 80)
        path = _path(url)
        # The same sentence whether it exists or not: what lies elsewhere is nobody's business
        outside = wrong(f"{shown} is not in the folder that this server opens files of; give a file: URL of one there")
        if path is None or not path.is_absolute():
            raise outside
        try:
            path = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise outside from error
        if not path.is_relative_to(self._folder):
            raise outside
        try:
            # Neither a link that was put in its place meanwhile nor a pipe
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise wrong(f"{shown} is no file; give a file: URL of an image")
                data = file.read(self._settings.max_image + 1)
        except OSError as error:
            raise wrong(f"{shown} cannot be opened ({quoted(error.strerror or error, limit=60)}); check it") from error
        if len(data) > self._settings.max_image:
            raise self._too_large(shown)
        return data

    def _too_large(self, what: str) -> RequestError:
        most = self._settings.max_image
        return wrong(f"{what} has more than {most:,} bytes, the most that are taken; send a smaller one")


def _is_base64(head: str) -> bool:
    return head.lower().rstrip().endswith(";base64")


def _path(url: str) -> Path | None:
    """The path of a file: URL or of a path itself; None where it is of another machine or none."""
    if "\0" in url or len(url) > 4096:
        return None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    if scheme is None:
        return Path(url)
    if scheme[1].lower() != "file":
        return None
    place = url[len("file:") :]
    if place.startswith("//"):
        host, slash, rest = place[2:].partition("/")
        if host not in {"", "localhost"}:
            return None
        place = slash + rest
    return Path(unquote(place)) if "\0" not in unquote(place) else None
