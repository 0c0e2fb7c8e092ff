"""Fetching an image by HTTP(S): one connection a hop, to an address that was judged, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from vtexport.errors import cut, printable, quoted
from vtexport.serve.addresses import Resolve, judged, resolve
from vtexport.serve.refusal import RequestError, wrong
from vtexport.serve.settings import Settings
from vtexport.version import __version__

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 2**16
MAX_URL = 8192
_AS_THEY_ARE = "/%:@!$&'()*+,;=~-._"  # of RFC 3986, in paths


@dataclass(frozen=True)
class _Hop:
    """Status of an answer with what it says, or where it sends to."""

    status: int
    location: str | None
    body: bytes


class Fetcher:
    """Fetches images within the bounds of `settings`.

    Args:
        settings: of the server.
        resolver: gives the addresses of a host.
        context: makes the TLS settings; the system's trusted authorities when left out.
    """

    def __init__(
        self,
        settings: Settings,
        resolver: Resolve = resolve,
        context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ):
        self._settings, self._resolver, self._make_context = settings, resolver, context
        self._context: ssl.SSLContext | None = None

    async def __call__(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            RequestError: it cannot be fetched, leads to where the server does not go, or gives too much.
        """
        try:
            return await asyncio.wait_for(self._follow(url), self._settings.fetch_seconds)
        except asyncio.TimeoutError as error:  # another class before Python 3.11
            raise wrong(
                f"{_shown(url)} did not give its image within {self._settings.fetch_seconds:g} s; send the image as a "
                "data: URL"
            ) from error

    async def _follow(self, url: str) -> bytes:
        first, parts = url, _split(url)
        for _ in range(self._settings.max_redirects + 1):
            hop = await self._hop(parts)
            if hop.location is None:
                if hop.status != 200:
                    raise wrong(f"{_shown(first)} answers with status {hop.status}; check the URL")
                return hop.body
            parts = _split(hop.location, parts.geturl())
        raise wrong(f"{_shown(first)} redirects more than {self._settings.max_redirects} times; give the last URL")

    async def _hop(self, url: SplitResult) -> _Hop:
        host, shown = url.hostname or "", _shown(url.geturl())
        port = url.port or _PORTS[url.scheme]
        addresses = await judged(host, port, self._settings.allow_hosts, self._resolver)
        try:
            reader, writer = await self._connect(addresses, port, host if url.scheme == "https" else None)
        except (OSError, ssl.SSLError) as error:
            raise wrong(f"{shown} cannot be reached ({quoted(error, limit=100)}); check the URL") from error
        try:
            return await self._talk(reader, writer, url, host)
        except (OSError, h11.RemoteProtocolError) as error:
            raise wrong(f"{shown} gave no whole answer ({quoted(error, limit=100)}); check the URL") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.CancelledError):
                writer.transport.abort()

    async def _connect(
        self, addresses: list[str], port: int, tls_name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if tls_name is not None and self._context is None:
            self._context = self._make_context()
        options: dict[str, Any] = {"ssl": self._context, "server_hostname": tls_name} if tls_name is not None else {}
        error: OSError = OSError("it has no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(address, port, **options)
            except OSError as failed:
                error = failed
        raise error

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: SplitResult, host: str
    ) -> _Hop:
        connection = h11.Connection(h11.CLIENT)
        target = quote(url.path or "/", safe=_AS_THEY_ARE)
        if url.query:
            target += "?" + quote(url.query, safe=_AS_THEY_ARE + "?")
        named = f"[{host}]" if ":" in host else host
        headers = [
            ("Host", f"{named}:{url.port}" if url.port else named),
            ("User-Agent", f"vtexport/{__version__}"),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=target, headers=headers)
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        body = bytearray()
        status, most = 0, self._settings.max_image
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK))
            elif isinstance(event, h11.Response):
                status = event.status_code
                found = {name.lower(): value.decode("latin-1") for name, value in event.headers}
                if status in _REDIRECTS and b"location" in found:
                    return _Hop(status, found[b"location"], b"")
                if status != 200:
                    return _Hop(status, None, b"")
                if int(found.get(b"content-length", "0")) > most:
                    raise _too_large(url, most)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise _too_large(url, most)
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                return _Hop(status, None, bytes(body))


def _split(url: str, base: str = "") -> SplitResult:
    """A URL in its parts; one that is relative counts from `base`.

    Raises:
        RequestError: it is none that is fetched.
    """
    if len(url) > MAX_URL:
        raise wrong(f"an image_url has {len(url):,} characters, more than {MAX_URL:,}; give a shorter URL")
    try:
        parts = urlsplit(urljoin(base, url))
        parts.port  # noqa: B018 (it is parsed here)
        if parts.hostname is not None and not parts.hostname.isascii():
            parts = parts._replace(netloc=parts.netloc.encode("idna").decode())
    except ValueError as error:
        raise wrong(f"{_shown(url)} is no URL ({quoted(error, limit=80)}); give an http(s) or data: URL") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise wrong(f"{_shown(url)} is no http(s) URL of a host; give an http(s) or data: URL")
    if parts.username is not None or parts.password is not None:
        raise wrong("an image_url has a user name or a password in it; give a URL without")
    return parts


def _too_large(url: SplitResult, most: int) -> RequestError:
    return wrong(
        f"{_shown(url.geturl())} gives more than {most:,} bytes, the most that are taken; send a smaller image"
    )


def _shown(url: str) -> str:
    """A URL for a sentence, without its query, which may hold a secret."""
    return cut(printable(url[:400].partition("?")[0]), 80)
