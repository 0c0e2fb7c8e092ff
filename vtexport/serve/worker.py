"""One thread that owns the pipelines and answers one request after the other.

Requests wait in a queue with a bound. Each is a `Job`, which tells its event loop what comes of it; a job whose client
left is taken out of the queue, or ends at its next token.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vtexport.errors import BundleError, InputError, UsageError
from vtexport.runtime.answers import Answer
from vtexport.runtime.image_files import read_bytes
from vtexport.runtime.images import LoadedImage
from vtexport.runtime.pipeline import Pipeline
from vtexport.serve.chat import Chat
from vtexport.serve.metrics import Metrics
from vtexport.serve.refusal import RequestError
from vtexport.serve.settings import Settings
from vtexport.serve.stop_text import StopText

STAGES = ("preprocess", "vision", "prune", "prefill", "first_token", "decode", "total")


@dataclass(frozen=True)
class Begun:
    """The prompt was taken, and its answer begins."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer: what came of it, and its text up to a stop string."""

    answer: Answer
    text: str


Event = Begun | str | Finished | BaseException  # a string is a piece of text


@dataclass(eq=False)
class Job:
    """One request on its way.

    Args:
        chat: the request.
        plan: that answers it.
        images: the bytes of its images.
        loop: that reads `events`.
    """

    chat: Chat
    plan: str
    images: list[bytes]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.perf_counter)
    left: bool = False

    def tell(self, event: Event) -> None:
        """Hands an event to the loop, from the worker's thread."""
        if not self.left and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """The thread and its queue.

    Args:
        open_plan: opens the pipeline of a plan.
        plans: names of the plans; the first is opened by `start`.
        settings: of the server.
    """

    def __init__(self, open_plan: Callable[[str], Pipeline], plans: list[str], settings: Settings):
        self._open, self._plans, self._settings = open_plan, plans, settings
        self.metrics = Metrics(self._gauges)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._running: Job | None = None
        self._pipelines: OrderedDict[str, Pipeline] = OrderedDict()  # the last one used last
        self._usual_seconds = 1.0  # that an answer takes, for Retry-After
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="vtexport-worker", daemon=True)
        self._admitted = 0

    def start(self) -> None:
        """Starts the thread and opens the first plan.

        Raises:
            VtexportError: it cannot be opened.
        """
        ready = threading.Event()
        self._ready = ready
        self._thread.start()
        ready.wait()
        if self._failed is not None:
            raise self._failed

    @property
    def alive(self) -> bool:
        """True while requests are answered."""
        return self._thread.is_alive() and not self._closing

    def admit(self) -> None:
        """Takes a place for a request, before anything is loaded for it; `release` gives it back.

        Raises:
            RequestError: so many wait already (429), or the server is stopping (503).
        """
        if not self.alive:
            raise RequestError(503, "the server is stopping; ask another one")
        if self._admitted > self._settings.queue:
            wait = max(1, min(600, round(self._admitted * self._usual_seconds)))
            raise RequestError(
                429, f"{self._settings.queue} requests wait already; ask again in {wait} s", retry_after=wait
            )
        self._admitted += 1

    def release(self) -> None:
        """Gives a place back."""
        self._admitted -= 1

    def put(self, job: Job) -> None:
        """Puts a job into the queue."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def leave(self, job: Job) -> None:
        """Ends a job that nobody waits for."""
        job.left = True
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self) -> None:
        """Ends the thread; what runs ends at its next token, and what waits is refused."""
        with self._changed:
            self._closing = True
            ended = [*self._jobs] if self._running is None else [self._running, *self._jobs]
            self._jobs.clear()
            self._changed.notify()
        for job in ended:
            job.tell(RequestError(503, "the server is stopping; ask another one"))
            job.left = True
        if self._thread.is_alive():
            self._thread.join()

    def _gauges(self) -> dict[str, int]:
        waiting, running = len(self._jobs), int(self._running is not None)
        return {"waiting": waiting, "running": running, "queue_limit": self._settings.queue}

    def _work(self) -> None:
        try:
            self._pipeline(self._plans[0])
        except BaseException as error:
            self._failed = error
            return
        finally:
            self._ready.set()
        while (job := self._next()) is not None:
            try:
                self._answer(job)
            except BaseException as error:
                if not isinstance(error, (InputError, UsageError, RequestError)):
                    traceback.print_exception(error, file=sys.stderr)
                job.tell(error)
            finally:
                self._running = None
                del job
        for pipeline in self._pipelines.values():
            pipeline.close()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            self._running = self._jobs.popleft()
            return self._running

    def _pipeline(self, plan: str) -> Pipeline:
        """The pipeline of a plan, for which the one not used for longest may have to go."""
        if plan not in self._pipelines:
            while len(self._pipelines) >= self._settings.loaded:
                self._pipelines.popitem(last=False)[1].close()
            self._pipelines[plan] = self._open(plan)
        self._pipelines.move_to_end(plan)
        return self._pipelines[plan]

    def _answer(self, job: Job) -> None:
        begin = time.perf_counter()
        self.metrics.time("queue", begin - job.arrived)
        chat, most = job.chat, self._settings.max_pixels
        try:
            pipeline = self._pipeline(job.plan)
        except (InputError, UsageError) as error:  # of the server's own, not of the request
            raise BundleError(str(error)) from error
        images = [LoadedImage(*read_bytes(data, f"image {number}", most)) for number, data in enumerate(job.images, 1)]
        job.images.clear()
        options: dict[str, Any] = {"temperature": chat.temperature, "top_p": chat.top_p, "seed": chat.seed}
        stream = pipeline.stream(images, chat.messages, max_new_tokens=chat.max_tokens, **options)
        job.tell(Begun())
        stop, text = StopText(chat.stop), []
        for piece in stream.by_token():
            if job.left:
                stream.close()
                self.metrics.count("cancelled_total")
                return
            if shown := stop.step(piece):
                text.append(shown)
                if chat.stream:
                    job.tell(shown)
            if stop.stopped:
                stream.end()
                break
        if rest := stop.finish():
            text.append(rest)
            if chat.stream:
                job.tell(rest)
        assert stream.answer is not None
        self._count(job.plan, stream.answer, time.perf_counter() - begin)  # so that who asks next finds it counted
        job.tell(Finished(stream.answer, "".join(text)))

    def _count(self, plan: str, answer: Answer, seconds: float) -> None:
        self._usual_seconds += 0.2 * (seconds - self._usual_seconds)
        count = self.metrics.count
        count("answers_total", plan=plan, reason=answer.finish_reason)
        count("prompt_tokens_total", answer.prompt_tokens)
        count("completion_tokens_total", len(answer.token_ids))
        count("reused_tokens_total", answer.reused_tokens)
        count("visual_tokens_total", answer.visual_tokens, plan=plan)
        for image in answer.images:
            count("images_total", plan=plan, reused=str(image.reused).lower())
        encoded = any(not image.reused for image in answer.images)
        for stage in STAGES:
            if encoded or stage not in STAGES[:3]:  # a frame that was there has the times of when it was encoded
                self.metrics.time(stage, answer.timings_ms[stage] / 1e3)
