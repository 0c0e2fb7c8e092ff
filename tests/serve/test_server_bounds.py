"""Bounds of the server: its queue, clients that leave, time, and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from running_server import PATIENCE, ask, running, wait_for
from serve_cases import about

from vtexport.serve.server import Server

BODY: dict[str, Any] = {"model": "tiny:prunesid-16", "messages": about("x?"), "max_tokens": 30}


class Gate:
    """Holds each token of a server's answers back until `open` is set, and counts those that came to it."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch):
        self.open, self.tokens = threading.Event(), 0
        stages = server.worker._pipeline("prunesid-16").stages
        decode = stages.decode

        def held(*arguments: Any) -> Any:
            self.tokens += 1
            assert self.open.wait(PATIENCE)
            return decode(*arguments)

        monkeypatch.setattr(stages, "decode", held)


@pytest.fixture
def server(served_bundle: Path) -> Iterator[Server]:
    with running(served_bundle, plans=["prunesid-16"], queue=2, answer_seconds=60.0) as found:
        yield found


@pytest.fixture
def gate(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(server, monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def later(threads: ThreadPoolExecutor, server: Server, **fields: Any) -> Future[tuple[int, Any, Any]]:
    return threads.submit(ask, server, {**BODY, **fields})


@contextlib.contextmanager
def begun(server: Server, **fields: Any) -> Iterator[http.client.HTTPConnection]:
    """A connection whose request is sent and whose answer nobody has read."""
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        body = json.dumps({**BODY, **fields})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        yield connection


def waiting(server: Server) -> int:
    return server.worker._gauges()["waiting"]


def idle(server: Server) -> bool:
    return server.worker._running is None and server.worker._admitted == 0


def test_more_than_the_queue_holds_may_come_again(server: Server, gate: Gate, threads: ThreadPoolExecutor) -> None:
    futures = [later(threads, server) for _ in range(3)]
    wait_for(lambda: waiting(server) == 2 and gate.tokens == 1)
    for _ in range(3):
        status, said, headers = ask(server, BODY)
        assert (status, said["error"]["type"]) == (429, "rate_limit_error")
        assert "2 requests wait already; ask again in " in said["error"]["message"]
        assert 1 <= int(headers["Retry-After"]) <= 600
    gate.open.set()
    texts = {json.dumps(each.result()[1]["choices"]) for each in futures}
    assert [each.result()[0] for each in futures] == [200] * 3
    assert len(texts) == 1
    assert ask(server, BODY)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(server: Server, gate: Gate, stream: bool) -> None:
    with begun(server, stream=stream):
        wait_for(lambda: gate.tokens == 1)
    wait_for(lambda: server.worker._running is not None and server.worker._running.left)
    gate.open.set()
    wait_for(lambda: idle(server))
    assert gate.tokens < 3
    assert "vtexport_cancelled_total 1" in server.worker.metrics.text()
    assert ask(server, BODY)[0] == 200


def test_a_client_that_leaves_the_queue(server: Server, gate: Gate, threads: ThreadPoolExecutor) -> None:
    first = later(threads, server)
    wait_for(lambda: gate.tokens == 1)
    for _ in range(5):  # more than the queue holds, one after the other
        with begun(server):
            wait_for(lambda: waiting(server) == 1)
        wait_for(lambda: waiting(server) == 0)
    gate.open.set()
    assert first.result()[0] == 200
    wait_for(lambda: idle(server))


def test_a_body_that_breaks_off(server: Server) -> None:
    where = urlsplit(server.url)
    for sent in (b"", b'{"model": '):
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=PATIENCE)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(sent)
        wait_for(lambda: server.worker._admitted == 1)
        connection.close()
        wait_for(lambda: idle(server))
    assert ask(server, BODY)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(served_bundle: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    with running(served_bundle, plans=["prunesid-16"], answer_seconds=0.5) as server:
        gate = Gate(server, monkeypatch)
        status, said, headers = ask(server, {**BODY, "stream": stream})
        if stream:  # it had begun
            assert (status, headers.get_content_type()) == (200, "text/event-stream")
            last = said.decode().strip().split("\n\n")[-1]
            said = json.loads(last.removeprefix("data: "))
        else:
            assert status == 504
        assert "the answer did not come within 0.5 s" in said["error"]["message"]
        gate.open.set()
        wait_for(lambda: idle(server))


def test_the_end_waits_for_running_answers(server: Server, gate: Gate, threads: ThreadPoolExecutor) -> None:
    futures = [later(threads, server) for _ in range(2)]
    wait_for(lambda: waiting(server) == 1 and gate.tokens == 1)
    server.stop()

    def closed() -> bool:
        try:
            ask(server, None, "/health")
        except ConnectionError:
            return True
        return False

    wait_for(closed)
    gate.open.set()
    assert [each.result()[0] for each in futures] == [200, 200]
    wait_for(lambda: not server.worker.alive)


def test_the_end_does_not_wait_for_ever(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(served_bundle, plans=["prunesid-16"], grace_seconds=0.2) as server:
        gate = Gate(server, monkeypatch)
        with begun(server) as connection:
            wait_for(lambda: gate.tokens == 1)
            server.stop()
            response = connection.getresponse()
            assert response.status == 503
            assert b"the server is stopping" in response.read()
            gate.open.set()
            wait_for(lambda: not server.worker._thread.is_alive())
        assert gate.tokens < 30


def test_requests_of_many_threads_at_once(served_bundle: Path) -> None:
    """Each gets its own answer, and nothing is left behind."""
    questions = [f"What is {number}?" for number in range(8)]
    with running(served_bundle, plans=["prunesid-16"], queue=64) as server, ThreadPoolExecutor(16) as pool:
        expected = {each: ask(server, {**BODY, "messages": about(each)})[1]["choices"] for each in questions}
        bodies = [{**BODY, "messages": about(questions[number % 8]), "stream": False} for number in range(120)]
        found = list(pool.map(lambda body: ask(server, body), bodies))
        assert [status for status, _, _ in found] == [200] * 120
        for number, (_, said, _) in enumerate(found):
            assert said["choices"] == expected[questions[number % 8]]
        wait_for(lambda: idle(server))
