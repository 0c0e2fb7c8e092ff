"""A server on its socket: uvicorn with the application, from its start to its graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

import uvicorn

from vtexport.bundle.reader import open_bundle
from vtexport.errors import UsageError, quoted
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.reuse import Reuse
from vtexport.serve.app import make_app
from vtexport.serve.fetch import Fetcher
from vtexport.serve.models import Models
from vtexport.serve.settings import Settings
from vtexport.serve.worker import Worker

_AFTER_GRACE = 10  # seconds for answers that were told to end
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Quiet(uvicorn.Server):
    """uvicorn's server without handlers of signals of its own, which would raise them again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing: `Server.run` has its own."""
        yield


class Server:
    """A server of one bundle.

    Args:
        bundle: its folder.
        settings: where and for whom.
        fetch: fetches images; made of the settings when left out.

    Attributes:
        url: Address that it listens on.

    Raises:
        InputError, BundleError: no such folder, or not a whole bundle.
        UsageError: no such plan, or the address cannot be had.
        MissingDependencyError: what computes is not there.
    """

    def __init__(self, bundle: str | Path, settings: Settings, fetch: Fetcher | None = None):
        self._opened, self.settings = open_bundle(bundle), settings
        self.models = Models(self._opened, settings)
        self.worker = Worker(self._open, list(self.models.plans), settings)
        self._socket = _listen(settings.host, settings.port)
        try:
            self.worker.start()
        except BaseException:
            self._socket.close()
            raise
        address, port = self._socket.getsockname()[:2]
        self.url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        config = uvicorn.Config(
            make_app(self.models, self.worker, settings, fetch),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + _AFTER_GRACE,
            h11_max_incomplete_event_size=2**16,
        )
        self._server = _Quiet(config)

    def run(self, on_stop: Callable[[], object] = lambda: None) -> None:
        """Answers requests until `stop`, or in the main thread until SIGINT or SIGTERM; a second one ends it at once.

        `on_stop` is called when it was asked to stop and running answers come to their end.
        """
        asyncio.run(self._serve(on_stop))

    def stop(self) -> None:
        """Lets running answers come to their end, takes no further requests, and ends; from any thread."""
        self._server.should_exit = True

    async def _serve(self, on_stop: Callable[[], object]) -> None:
        hurry = asyncio.Event()
        loop = asyncio.get_running_loop()

        def asked(number: int, frame: FrameType | None) -> None:
            if self._server.should_exit:
                loop.call_soon_threadsafe(hurry.set)
            else:
                on_stop()
            self.stop()

        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread
            before = {number: signal.signal(number, asked) for number in _SIGNALS}
        ending = asyncio.ensure_future(self._end_in_time(hurry))
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            ending.cancel()
            self._socket.close()
            await asyncio.to_thread(self.worker.close)
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _end_in_time(self, hurry: asyncio.Event) -> None:
        """Ends running answers where they are, once the time for them is over or nobody wants to wait for them."""
        while not self._server.should_exit:
            await asyncio.sleep(0.1)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(hurry.wait(), self.settings.grace_seconds)
        await asyncio.to_thread(self.worker.close)

    def _open(self, plan: str) -> Pipeline:
        kept = self.settings
        reuse = Reuse(kept.frames, kept.prompts) if kept.frames or kept.prompts else None
        return Pipeline.open(self._opened.folder, plan, device=kept.device, threads=kept.threads, reuse=reuse)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0
        reason = quoted(os.strerror(number) if number > 0 else error.strerror or error, limit=80)
        raise UsageError(
            f"cannot listen on {quoted(host, limit=60)} port {port} ({reason}); give another --host or --port"
        ) from error
