"""The routes: chat completions, models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vtexport.errors import cut, printable
from vtexport.serve.chat import Chat, read_chat
from vtexport.serve.fetch import Fetcher
from vtexport.serve.metrics import CONTENT_TYPE
from vtexport.serve.models import Models
from vtexport.serve.pictures import PictureLoader
from vtexport.serve.refusal import RequestError, as_refusal
from vtexport.serve.replies import Reply, event
from vtexport.serve.settings import LOOPBACK, Settings
from vtexport.serve.worker import Begun, Event, Finished, Job, Worker

_LEFT = 499  # status of a request whose client left, which it does not see


class _LeftError(Exception):
    """The client left."""


def make_app(models: Models, worker: Worker, settings: Settings, fetch: Fetcher | None = None) -> ASGIApp:
    """The application for one bundle, whose worker was started."""
    routes = _Routes(models, worker, settings, PictureLoader(settings, fetch or Fetcher(settings)))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{model:path}", routes.model, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _not_served, RequestError: _refused},
    )
    return _Guard(app, worker, settings)


@dataclass(frozen=True)
class _Routes:
    models_: Models
    worker: Worker
    settings: Settings
    load: PictureLoader

    async def models(self, request: Request) -> Response:
        return _json(self.models_.listed())

    async def model(self, request: Request) -> Response:
        return _json(self.models_.card(request.path_params["model"]))

    async def health(self, request: Request) -> Response:
        if not self.worker.alive:
            return _json({"status": "stopping"}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(self.worker.metrics.text(), media_type=CONTENT_TYPE)

    async def chat(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also what keeps a page in a browser from asking: it may send this type to no other site by itself
            raise RequestError(415, "the body is not of type application/json; send it with that Content-Type")
        self.worker.admit()
        kept = False
        try:
            body = await self._body(request)
            chat = read_chat(body, self.settings)
            del body
            plan = self.models_.plan(chat.model)
            answering = _Answering(self, request, chat, plan)
            await answering.begin()
            if chat.stream:
                kept = True
                return _Events(answering)
            return _json(await answering.whole())
        except _LeftError:
            return Response(status_code=_LEFT)
        finally:
            if not kept:
                self.worker.release()

    async def _body(self, request: Request) -> bytes:
        most, seconds = self.settings.max_body, self.settings.body_seconds
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > most:
            raise _too_long(most)
        try:
            return await asyncio.wait_for(_read(request, most), seconds)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not come within {seconds:g} s; send it at once") from error
        except ClientDisconnect as error:
            raise _LeftError from error


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_long(most)
    return bytes(body)


def _too_long(most: int) -> RequestError:
    return RequestError(413, f"the body has more than {most:,} bytes, the most that are taken; send smaller images")


class _Answering:
    """One answer on its way to its client, who may leave at any time."""

    def __init__(self, routes: _Routes, request: Request, chat: Chat, plan: str):
        self._routes, self._request, self.chat, self._plan = routes, request, chat, plan
        self.reply = Reply(chat.model)
        self.worker = routes.worker
        self._deadline = asyncio.get_running_loop().time() + routes.settings.answer_seconds
        self._gone = asyncio.ensure_future(self._leaves())
        self._job: Job | None = None

    async def _leaves(self) -> None:
        """Returns when the client has left."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    async def begin(self) -> None:
        """Loads the images, and waits until the prompt was taken.

        Raises:
            RequestError: it was not.
        """
        try:
            images = [await self._unless_gone(self._routes.load(url)) for url in self.chat.images]
            self._job = Job(self.chat, self._plan, images, asyncio.get_running_loop())
            del images
            self.worker.put(self._job)
            begun = await self._next()
            assert isinstance(begun, Begun)
        except BaseException:
            self.end()
            raise

    async def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        try:
            finished = await self._next()
            assert isinstance(finished, Finished)
            return self.reply.whole(finished.answer, finished.text)
        finally:
            self.end()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error behind the first of them is one."""
        try:
            yield self.reply.first()
            while True:
                one = await self._next()
                if isinstance(one, Finished):
                    yield self.reply.last(one.answer, self.chat.include_usage)
                    return
                assert isinstance(one, str)
                yield self.reply.piece(one)
        except RequestError as refusal:
            yield event(refusal.body())
        finally:
            self.end()

    def end(self) -> None:
        """Takes the job back where it has not ended."""
        self._gone.cancel()
        if self._job is not None:
            self.worker.leave(self._job)

    async def _next(self) -> Event:
        assert self._job is not None
        if self._job.events.empty():
            one = await self._unless_gone(self._job.events.get())
        else:
            one = self._job.events.get_nowait()
        if isinstance(one, BaseException):
            raise as_refusal(one) from one
        return one

    async def _unless_gone(self, work: Awaitable[Any]) -> Any:
        """Result of `work`; it is cancelled when the client leaves or the time is over."""
        task = asyncio.ensure_future(work)
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({task, self._gone}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._gone.done():
                raise _LeftError
            seconds = self._routes.settings.answer_seconds
            raise RequestError(504, f"the answer did not come within {seconds:g} s; ask for fewer tokens or later")
        finally:
            task.cancel()


class _Events(Response):
    """A stream of server-sent events, which gives the request's place back when it ends."""

    def __init__(self, answering: _Answering):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            chunks = self._answering.chunks()
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (_LeftError, OSError):
            pass  # nobody reads it
        finally:
            self._answering.end()
            self._answering.worker.release()


class _Guard:
    """Checks before every route: the key, and for whom the request is; counts them behind it."""

    def __init__(self, app: ASGIApp, worker: Worker, settings: Settings):
        self._app, self._worker, self._settings = app, worker, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in _COUNTED else "other"
        status = 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refuses(Request(scope))
            if refusal is not None:
                await _answered(refusal)(scope, receive, noted)
            else:
                await self._app(scope, receive, noted)
        finally:
            self._worker.metrics.count("requests_total", route=route, status=status)

    def _refuses(self, request: Request) -> RequestError | None:
        key = self._settings.api_key
        if key is not None and request.url.path.startswith("/v1/"):
            kind, _, shown = request.headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), key.encode()):
                return RequestError(401, "the API key is missing or another one; send it as Authorization: Bearer KEY")
        if key is None and self._settings.only_here:
            # A page in a browser reaches this machine by a name of its own that it points here (DNS rebinding)
            host = request.headers.get("host", "")
            name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
            if name.lower() not in {*LOOPBACK, self._settings.host}:
                shown = cut(printable(name), 60)
                return RequestError(
                    421, f"this server listens for this machine alone, and not as {shown}; ask 127.0.0.1"
                )
        return None


_COUNTED = {"/v1/chat/completions", "/v1/models", "/health", "/metrics"}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _answered(refusal: RequestError) -> Response:
    return _json(refusal.body(), refusal.status, refusal.headers())


def _refused(request: Request, error: Exception) -> Response:
    return _answered(as_refusal(error))


def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = cut(printable(request.url.path), 60)
    wants = {404: f"there is nothing at {path}", 405: f"{path} does not take {cut(printable(request.method), 20)}"}
    said = wants.get(error.status_code, str(error.detail))
    routes = "POST /v1/chat/completions, GET /v1/models, /health and /metrics are there"
    return _answered(RequestError(error.status_code, f"{said}; {routes}"))
