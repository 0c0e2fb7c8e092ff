"""A server in a thread of the test, on a free port, and HTTP servers that it fetches images from."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vtexport.serve.fetch import Fetcher
from vtexport.serve.server import Server
from vtexport.serve.settings import Settings

PATIENCE = 60.0  # seconds until a test fails that would wait for ever


@contextlib.contextmanager
def running(bundle: Path, fetch: Callable[[Settings], Fetcher] | None = None, **settings: Any) -> Iterator[Server]:
    """A server with these settings, on one thread for each operator."""
    chosen = Settings(**{"port": 0, "threads": 1, "grace_seconds": 5.0, **settings})
    server = Server(bundle, chosen, fetch(chosen) if fetch else None)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server._server.started)
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert not server.worker.alive


def wait_for(true: Callable[[], bool]) -> None:
    """Waits until something holds."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def ask(server: Server, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, Any]:
    """Status, JSON and headers of one request; a body that is no bytes is sent as JSON, None by GET."""
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        given = {"Content-Type": "application/json", **{name.replace("_", "-"): each for name, each in headers.items()}}
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, sent, given)
        response = connection.getresponse()
        data = response.read()
        kind = response.headers.get_content_type()
        return response.status, json.loads(data) if kind == "application/json" else data, response.headers


@contextlib.contextmanager
def serving(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server with these answers by path: its URL, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
