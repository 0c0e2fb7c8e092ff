"""Fetching: bounds, redirects, and connections that go to the address that was judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vtexport.serve.fetch import Fetcher
from vtexport.serve.refusal import RequestError
from vtexport.serve.settings import Settings

PUBLIC = "93.184.215.14"


class Net:
    """Hosts by name with the bytes that each answers to a request, and the addresses that were connected to."""

    def __init__(self, hosts: dict[str, str], answers: dict[str, bytes | None]):
        self.hosts, self.answers = hosts, answers
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.requests: list[bytes] = []
        self.tls: list[Any] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        if host not in self.hosts:
            raise OSError("unknown")
        return [self.hosts[host]]

    async def open(self, address: str, port: int, **tls: Any) -> tuple[asyncio.StreamReader, Any]:
        self.connected.append((address, port))
        self.tls.append(tls.get("server_hostname"))
        net, reader = self, asyncio.StreamReader()

        class Writer:
            transport = type("Transport", (), {"abort": lambda self: None})()

            def write(self, data: bytes) -> None:
                net.requests.append(data)
                answer = net.answers[data.split(b" ")[1].decode()]
                if answer is not None:
                    reader.feed_data(answer)
                    reader.feed_eof()

            async def drain(self) -> None:
                pass

            def close(self) -> None:
                pass

        return reader, Writer()


def get(net: Net, url: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> bytes:
    monkeypatch.setattr(asyncio, "open_connection", net.open)
    fetch = Fetcher(Settings(**settings), net.resolve, context=lambda: None)  # type: ignore[arg-type, return-value]
    return asyncio.run(fetch(url))


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def moved(to: str) -> bytes:
    return whole(b"", "302 Found", f"Location: {to}")


@pytest.fixture
def net() -> Net:
    hosts = {"a.example": PUBLIC, "b.example": "8.8.8.8", "in.example": "10.0.0.1", "xn--bcher-kva.example": PUBLIC}
    return Net(hosts, {"/": whole(b"image")})


def test_bytes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.answers["/p%20q.png?k=v"] = whole(b"image")
    assert get(net, "http://a.example:8080/p q.png?k=v#part", monkeypatch) == b"image"
    assert net.connected == [(PUBLIC, 8080)]
    assert b"Host: a.example:8080\r\n" in net.requests[0]
    assert net.tls == [None]


def test_tls_is_for_the_name_and_to_the_address(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(net, "https://a.example", monkeypatch) == b"image"
    assert (net.connected, net.tls) == ([(PUBLIC, 443)], ["a.example"])


def test_a_name_in_other_letters(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(net, "http://bücher.example/", monkeypatch) == b"image"


def test_the_address_that_was_judged_is_the_one_connected_to(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has another address the next time (DNS rebinding) is not asked a second time."""

    class Rebinds(Net):
        async def resolve(self, host: str, port: int) -> list[str]:
            self.resolved.append(host)
            return [PUBLIC if len(self.resolved) == 1 else "127.0.0.1"]

    rebinding = Rebinds({}, {"/": whole(b"image"), "/again": moved("http://a.example/")})
    assert get(rebinding, "http://a.example/", monkeypatch) == b"image"
    assert (rebinding.resolved, rebinding.connected) == (["a.example"], [(PUBLIC, 80)])
    rebinding.resolved.clear()
    with pytest.raises(RequestError, match="is not on the public internet"):
        get(rebinding, "http://a.example/again", monkeypatch)
    assert rebinding.connected == [(PUBLIC, 80)] * 2


def test_redirects_are_followed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.answers |= {"/1": moved("//b.example/2"), "/2": moved("/3"), "/3": moved("http://a.example/")}
    assert get(net, "http://a.example/1", monkeypatch) == b"image"
    assert [address for address, _ in net.connected] == [PUBLIC, "8.8.8.8", "8.8.8.8", PUBLIC]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("http://in.example/", "in.example of an image_url is not on the public internet"),
        ("http://127.0.0.1/", "has no address"),
        ("file:///etc/passwd", "is no http"),
        ("gopher://a.example/", "is no http"),
        ("http://user:secret@a.example/", "a user name or a password"),
        ("http://[::1/", "is no URL"),
        ("http://a.example:99999/", "is no URL"),
        ("/loop", "redirects more than 3 times"),
        ("http://a.example/gone", "answers with status 404"),
        ("http://nowhere.example/", "the host nowhere.example of an image_url has no address"),
    ],
)
def test_redirects_that_are_refused(net: Net, monkeypatch: pytest.MonkeyPatch, to: str, message: str) -> None:
    net.answers |= {"/loop": moved(to), "/gone": whole(b"", "404 Not Found")}
    with pytest.raises(RequestError, match=message) as found:
        get(net, "http://a.example/loop", monkeypatch)
    assert len(str(found.value)) <= 300


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (whole(b"0123456789A"), "gives more than 10 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 11, "gives more than 10 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789A\r\n0\r\n\r\n", "gives more than 10"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "gave no whole answer"),
        (b"nonsense\r\n\r\n", "gave no whole answer"),
        (b"", "gave no whole answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "gave no whole answer"),
    ],
)
def test_answers_that_are_refused(net: Net, monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str) -> None:
    net.answers["/"] = answer
    with pytest.raises(RequestError, match=message):
        get(net, "http://a.example/", monkeypatch, max_image=10)


def test_an_answer_that_does_not_come(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.answers["/?key=secret"] = None
    with pytest.raises(RequestError, match=r"a.example/ did not give its image within 0.05 s") as found:
        get(net, "http://a.example/?key=secret", monkeypatch, fetch_seconds=0.05)
    assert "secret" not in str(found.value)


def test_a_host_that_refuses(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*arguments: Any, **options: Any) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(asyncio, "open_connection", refuses)
    fetch: Callable[[str], Awaitable[bytes]] = Fetcher(Settings(), net.resolve)
    with pytest.raises(RequestError, match="cannot be reached"):
        asyncio.run(fetch("http://a.example/"))  # type: ignore[arg-type]


def test_long_urls(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="has 9,017 characters, more than 8,192"):
        get(net, "http://a.example/" + "x" * 9000, monkeypatch)
