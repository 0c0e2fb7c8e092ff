"""The loop: take the newest frame, ask, give the answer with how old its frame is, begin again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from vtexport.errors import InputError, UsageError
from vtexport.runtime.answers import Answer
from vtexport.runtime.images import LoadedImage, read_image
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.reuse import Reuse
from vtexport.watch.change import Change
from vtexport.watch.frames import Frame, Source
from vtexport.watch.sources import open_source
from vtexport.watch.time import RealTime

_SLICE = 0.1  # seconds for which the loop waits without looking whether it should stop
_ROUNDING = 1e-9  # of a turn


@dataclass(frozen=True)
class Observation:
    """One frame that was asked about.

    Attributes:
        frame: It.
        question: What was asked.
        answer: None where the frame could not be answered about.
        error: The sentence why not.
        start_age: Seconds from the frame's capture to the question.
        age: Seconds from the frame's capture to the end of the answer; 0 in a recording's own time.
        cut: True where the answer was ended for the deadline's sake.
        late: True where it came after the deadline all the same.
        change: Largest difference of a cell to the last frame that was asked about; None without `on_change`.
        dropped: Frames since the last observation that a newer one replaced, or that were too old to ask about.
        unchanged: Frames since then that were looked at and not asked about, because they show the same.
        missed: Turns since then that were left out, because the answer before took longer than `every`.
    """

    frame: Frame
    question: str
    answer: Answer | None
    error: str | None = None
    start_age: float = 0.0
    age: float = 0.0
    cut: bool = False
    late: bool = False
    change: float | None = None
    dropped: int = 0
    unchanged: int = 0
    missed: int = 0

    @property
    def text(self) -> str:
        """The answer's text without spaces around it, empty where there is none."""
        return self.answer.text.strip() if self.answer is not None else ""


class Watcher:
    """Asks a pipeline about the newest frame of a source, again and again.

    Iterate over it for one observation after the other. Or `start` it, so that a loop of its own pace, such as a
    robot's control, reads `newest` whenever it needs it.

    Args:
        pipeline: that answers; whoever opened it closes it.
        source: of the frames; closed with the watcher.
        prompt: the question.
        every: seconds from one question to the next at least; 0 for as fast as it goes.
        on_change: asks only about a frame that shows something else: a threshold from 0 to 1 (`watch.change`).
        deadline: seconds from a frame's capture in which its answer has to be there: it is ended where a further token
            would not be in time. A frame that is older already is dropped.
        time: that passes.
        should_stop: is asked between tokens and frames, and ends the loop as `stop` does.
        options: as of `Pipeline.stream`, such as `max_new_tokens`.

    Raises:
        UsageError: a value is out of range.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        prompt: str,
        *,
        every: float = 0.0,
        on_change: float | None = None,
        deadline: float | None = None,
        time: RealTime | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ):
        if not (math.isfinite(every) and every >= 0):
            raise UsageError(f"every is {every!r}; give seconds from 0")
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            raise UsageError(f"deadline is {deadline!r}; give seconds above 0")
        if on_change is not None and not 0 <= on_change < 1:
            raise UsageError(f"on_change is {on_change!r}; give a share of the range of brightness, from 0 to below 1")
        self._pipeline, self._source, self._prompt, self._options = pipeline, source, prompt, options
        self._every, self._deadline, self._time = every, deadline, time or RealTime()
        self._change = Change(on_change) if on_change is not None else None
        self._owned: Pipeline | None = None
        self._stop, self._should_stop = threading.Event(), should_stop
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._newest: Observation | None = None
        self._failure: BaseException | None = None
        self._finished = False
        self._began = 0.0  # the turn that runs
        self._due: float | None = None  # the next one; None before the first
        self._passed_over = self._too_old = self._unchanged = self._missed = 0

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        source: str | Source,
        prompt: str,
        *,
        plan: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        fps: float | None = None,
        follow: bool = False,
        **options: Any,
    ) -> Watcher:
        """Opens a bundle and a source; both are closed with the watcher.

        Args:
            bundle: the bundle's folder.
            source: as of `open_source`, or one that is open.
            prompt: the question.
            plan: as of `Pipeline.open`.
            device: as of `Pipeline.open`.
            threads: as of `Pipeline.open`.
            fps: as of `open_source`.
            follow: as of `open_source`.
            options: as of `Watcher`.

        Raises:
            UsageError, InputError, BundleError, MissingDependencyError: as of `Pipeline.open` and `open_source`.
        """
        # The source first: a wrong name should not cost the loading of a model
        opened = open_source(source, fps=fps, follow=follow) if isinstance(source, str) else source
        try:
            pipeline = Pipeline.open(bundle, plan, device=device, threads=threads, reuse=Reuse(frames=1, prompts=1))
        except BaseException:
            opened.close()
            raise
        try:
            watcher = cls(pipeline, opened, prompt, **options)
        except BaseException:
            opened.close()
            pipeline.close()
            raise
        watcher._owned = pipeline
        return watcher

    def __iter__(self) -> Iterator[Observation]:
        """Observations until the source ends or `stop` is called.

        Raises:
            UsageError: the prompt cannot be asked.
            InputError: the source has failed.
        """
        self._passed_over = self._source.dropped  # while a model was loaded, say
        while not self._stopping():
            self._wait_for_turn()
            frame = self._source.newest(_SLICE)
            if frame is None:
                if self._source.ended:
                    return
                continue
            if self._is_too_old(frame):
                self._too_old += 1
                continue
            if (seen := self._look(frame)) is not None:
                counted = self._counted(seen)
                self._end_turn()
                yield counted

    def start(self) -> None:
        """Runs the loop in a thread of its own, for `newest`.

        Raises:
            UsageError: it runs already.
        """
        if self._thread is not None:
            raise UsageError("this watcher runs already; read its newest, or make another one")
        self._thread = threading.Thread(target=self._run, name="vtexport-watcher", daemon=True)
        self._thread.start()

    def newest(self, max_age: float | None = None) -> Observation | None:
        """The last observation of a watcher that was started; None where there is none yet.

        Args:
            max_age: seconds; None comes for a frame that was captured earlier, as if nothing had been seen: what a
                robot that moves has to know.

        Raises:
            VtexportError: the loop has failed, by this error.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            found = self._newest
        if found is None or (max_age is not None and self._time.now() - found.frame.captured > max_age):
            return None
        return found

    @property
    def finished(self) -> bool:
        """True once the loop of `start` has ended."""
        return self._finished

    def stop(self) -> None:
        """Ends the loop at the next token or frame; from any thread, or a handler of signals."""
        self._stop.set()

    def close(self) -> None:
        """Ends the loop, and gives the source and what `open` opened back."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._source.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stopping(self) -> bool:
        return self._stop.is_set() or self._should_stop()

    def _run(self) -> None:
        try:
            for seen in self:
                with self._lock:
                    self._newest = seen
        except BaseException as error:
            with self._lock:
                self._failure = error
        finally:
            self._finished = True

    def _wait_for_turn(self) -> None:
        while self._due is not None and not self._stopping():
            left = self._due - self._time.now()
            if left <= 0:
                return
            self._time.sleep(min(left, _SLICE))

    def _end_turn(self) -> None:
        """Sets when the next turn is due: on the grid of `every`, with those left out that have passed meanwhile."""
        if self._every:
            due = self._due if self._due is not None else self._began
            passed = max(1, math.ceil((self._time.now() - due) / self._every - _ROUNDING))
            self._missed += passed - 1
            self._due = due + passed * self._every

    def _is_too_old(self, frame: Frame) -> bool:
        return self._deadline is not None and self._time.now() - frame.captured >= self._deadline

    def _look(self, frame: Frame) -> Observation | None:
        """The observation of a frame; None where it shows what the last one did, or the loop was stopped meanwhile."""
        self._began = began = self._time.now()
        seen = Observation(frame, self._prompt, None, start_age=began - frame.captured)
        change = None
        try:
            image = read_image(frame.image)
            if self._change is not None:
                change = self._change.of(image.image)
                if not self._change.is_new(change):
                    self._unchanged += 1
                    self._end_turn()
                    return None
            asked = self._ask(frame, image)
            if asked is None:
                return None
            answer, cut = asked
        except InputError as error:  # of this frame: the next one may be in order
            return replace(seen, error=str(error), age=self._time.now() - frame.captured, change=change)
        if self._change is not None:
            self._change.keep(image.image)
        age = self._time.now() - frame.captured
        late = self._deadline is not None and age > self._deadline
        return replace(seen, answer=answer, age=age, cut=cut, late=late, change=change)

    def _ask(self, frame: Frame, image: LoadedImage) -> tuple[Answer, bool] | None:
        """The answer, and whether it was ended for the deadline's sake; None where the loop was stopped."""
        stream = self._pipeline.stream(image, self._prompt, **self._options)
        end = math.inf if self._deadline is None else frame.captured + self._deadline
        before = self._time.now()
        cut, longest = False, 0.0
        for count, _ in enumerate(stream.by_token()):
            if self._stopping():
                stream.close()
                return None
            now = self._time.now()
            if count:  # the first token comes with the prefill, which is behind us
                longest = max(longest, now - before)
            before = now
            if now >= end or now + longest > end:
                stream.end()
                cut = True
                break
        assert stream.answer is not None
        return stream.answer, cut and stream.answer.finish_reason == "stop_string"

    def _counted(self, seen: Observation) -> Observation:
        """The observation with what was passed over since the last one."""
        dropped = self._source.dropped
        counted = replace(
            seen,
            dropped=dropped - self._passed_over + self._too_old,
            unchanged=self._unchanged,
            missed=self._missed,
        )
        self._passed_over, self._too_old, self._unchanged, self._missed = dropped, 0, 0, 0
        return counted
