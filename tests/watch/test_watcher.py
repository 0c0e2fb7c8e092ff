"""The loop: the newest frame alone, turns, deadlines, changes, and its end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import wait_for
from slow_answers import MovedTime, Scripted, SlowPipeline

from vtexport.errors import InputError, UsageError
from vtexport.runtime.pipeline import Pipeline
from vtexport.watch import Observation, Watcher
from vtexport.watch.frames import Frame, Newest, Source

GREY = np.full((32, 48, 3), 120, np.uint8)
QUESTION = "Is the way free?"


def made(
    frames: list[tuple[float, Any]], first: float = 0.0, each: float = 0.0, **options: Any
) -> tuple[Watcher, SlowPipeline, Scripted, MovedTime]:
    time = MovedTime()
    pipeline, source = SlowPipeline(time, first, each), Scripted(time, frames)
    return Watcher(pipeline, source, QUESTION, time=time, **options), pipeline, source, time  # type: ignore[arg-type]


def camera(count: int, fps: float = 10.0, image: Any = GREY) -> list[tuple[float, Any]]:
    return [(number / fps, image) for number in range(count)]


def test_a_slow_answer_leaves_no_queue() -> None:
    """Answers of 0.35 s at 10 frames a second: each is about the frame that came last before it began."""
    watcher, pipeline, _, _ = made(camera(20), first=0.35, max_new_tokens=1)
    seen = list(watcher)
    assert [each.frame.number for each in seen] == [0, 3, 7, 10, 14, 17, 19]
    assert [each.dropped for each in seen] == [0, 2, 3, 2, 3, 2, 1]
    assert sum(each.dropped for each in seen) + len(seen) == 20
    for each in seen[:-1]:  # the last frame had no newer one
        assert each.start_age < 0.1 + 1e-9
        assert each.age == pytest.approx(each.start_age + 0.35)
    assert {prompt for _, prompt in pipeline.asked} == {QUESTION}


def test_an_answer_about_each_frame_where_there_is_time() -> None:
    watcher, _, _, _ = made(camera(5), first=0.01)
    seen = list(watcher)
    assert [(each.frame.number, each.dropped, each.missed, each.late) for each in seen] == [
        (number, 0, 0, False) for number in range(5)
    ]
    assert [each.text for each in seen] == ["abc"] * 5


def test_turns_stay_on_their_grid() -> None:
    """Every 0.5 s; the third answer takes 1.2 s, so that two turns are left out, and the grid stays."""
    watcher, pipeline, _, time = made(camera(60), first=0.1, max_new_tokens=1, every=0.5)
    seen: list[tuple[float, Observation]] = []
    for each in watcher:
        pipeline.first = 1.2 if len(seen) == 1 else 0.1
        seen.append((time.now() - each.age + each.start_age, each))
        if len(seen) == 6:
            break
    assert [round(began, 6) for began, _ in seen] == [0.0, 0.5, 1.0, 2.5, 3.0, 3.5]
    assert [each.missed for _, each in seen] == [0, 0, 0, 2, 0, 0]
    assert [each.frame.number for _, each in seen] == [0, 5, 10, 25, 30, 35]


def test_an_answer_is_cut_for_its_deadline() -> None:
    """0.1 s to the first token, 0.05 for each: 0.32 s are enough for five tokens and not for a sixth."""
    watcher, pipeline, _, _ = made([(0.0, GREY)], first=0.1, each=0.05, max_new_tokens=10, deadline=0.32)
    (seen,) = watcher
    assert seen.answer is not None
    assert (seen.text, seen.cut, seen.late) == ("abcde", True, False)
    assert seen.age == pytest.approx(0.3)
    assert pipeline.closed == 0


def test_an_answer_that_ends_in_time_is_whole() -> None:
    watcher, _, _, _ = made([(0.0, GREY)], first=0.1, each=0.05, max_new_tokens=4, deadline=0.3)
    (seen,) = watcher
    assert (seen.text, seen.cut, seen.late) == ("abcd", False, False)


def test_the_last_token_at_the_deadline_cuts_nothing() -> None:
    watcher, _, _, _ = made([(0.0, GREY)], first=0.125, each=0.0625, max_new_tokens=4, deadline=0.3125)
    (seen,) = watcher
    assert (seen.text, seen.cut, seen.late) == ("abcd", False, False)


def test_a_first_token_behind_the_deadline_is_late() -> None:
    watcher, _, _, _ = made([(0.0, GREY)], first=0.4, each=0.05, max_new_tokens=10, deadline=0.3)
    (seen,) = watcher
    assert (seen.text, seen.cut, seen.late) == ("a", True, True)
    assert seen.age == pytest.approx(0.4)


def test_a_frame_older_than_the_deadline_is_not_asked_about() -> None:
    frames = [(0.0, GREY), (0.1, GREY), (1.5, GREY)]
    watcher, pipeline, _, _ = made(frames, first=0.6, max_new_tokens=1, deadline=0.4)
    seen = list(watcher)
    assert [(each.frame.number, each.dropped) for each in seen] == [(0, 0), (2, 1)]
    assert len(pipeline.asked) == 2


def test_on_change_asks_once_about_what_stays() -> None:
    noise = np.random.default_rng(3)
    noisy = [np.clip(GREY + noise.normal(0, 8, GREY.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    corner = noisy[3].copy()
    corner[:8, :12] = 255
    images = [*noisy[:3], corner, corner, noisy[4]]
    watcher, _, _, _ = made([(n / 10, image) for n, image in enumerate(images)], first=0.01, on_change=0.05)
    seen = list(watcher)
    assert [(each.frame.number, each.unchanged) for each in seen] == [(0, 0), (3, 2), (5, 1)]
    assert seen[0].change is None
    assert seen[1].change is not None
    assert seen[1].change > 0.4


def test_a_slow_change_counts_against_the_frame_that_was_asked_about() -> None:
    images = [np.full((32, 32, 3), 100 + 5 * number, np.uint8) for number in range(10)]
    watcher, _, _, _ = made([(n / 10, image) for n, image in enumerate(images)], on_change=0.05)
    assert [each.frame.number for each in watcher] == [0, 3, 6, 9]


def test_a_frame_that_cannot_be_answered_about_is_told_and_passed_over() -> None:
    watcher, pipeline, _, _ = made([*camera(2), (0.2, Path("/no/such.png")), (0.3, GREY)])
    pipeline.refuses = {1}
    seen = list(watcher)
    assert [each.answer is None for each in seen] == [False, True, True, False]
    assert seen[1].error == "this image is none; give another"
    assert "/no/such.png" in str(seen[2].error)
    assert seen[1].text == ""


def test_a_prompt_that_cannot_be_asked_ends_the_loop() -> None:
    watcher, pipeline, _, _ = made(camera(2))

    def refuses(*arguments: Any, **options: Any) -> Any:
        raise UsageError("the prompt is too long")

    pipeline.stream = refuses  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="the prompt is too long"):
        list(watcher)


def test_stop_ends_an_answer_at_its_next_token() -> None:
    watcher, pipeline, _, _ = made(camera(5), max_new_tokens=10)
    real = pipeline.stream

    def stopped(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if len(pipeline.asked) == 2:
            watcher.stop()
        return found

    pipeline.stream = stopped  # type: ignore[method-assign]
    assert len(list(watcher)) == 1
    assert pipeline.closed == 1


def test_should_stop_is_asked_while_it_waits() -> None:
    time = MovedTime()
    watcher = Watcher(
        SlowPipeline(time),  # type: ignore[arg-type]
        Scripted(time, [(0.0, GREY), (1e6, GREY)]),
        QUESTION,
        time=time,
        should_stop=lambda: time.now() > 5,
    )
    assert len(list(watcher)) == 1
    assert time.now() < 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1.0}, "every is -1.0; give seconds from 0"),
        ({"every": float("nan")}, "every is nan"),
        ({"deadline": 0.0}, "deadline is 0.0; give seconds above 0"),
        ({"on_change": 1.0}, "on_change is 1.0; give a share"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        made([], **options)


def test_in_a_thread_the_newest_observation_has_an_age() -> None:
    time = MovedTime()
    source = Held()
    with Watcher(SlowPipeline(time), source, QUESTION, time=time) as watcher:  # type: ignore[arg-type]
        watcher.start()
        assert watcher.newest() is None
        source.slot.put(Frame(GREY, 7, 0.0, 0.0))
        wait_for(lambda: watcher.newest() is not None)
        found = watcher.newest(max_age=1.0)
        assert found is not None
        assert found.frame.number == 7
        time.passed = 2.0
        assert watcher.newest(max_age=1.0) is None
        assert watcher.newest() is found
        with pytest.raises(UsageError, match="this watcher runs already"):
            watcher.start()
        assert not watcher.finished
    assert watcher.finished
    assert source.closed


def test_a_failure_in_the_thread_is_raised_where_it_is_read() -> None:
    time, source = MovedTime(), Held()
    source.failure = InputError("camera 0 gives no further frames; check it")
    with Watcher(SlowPipeline(time), source, QUESTION, time=time) as watcher:  # type: ignore[arg-type]
        watcher.start()
        wait_for(lambda: watcher.finished)
        with pytest.raises(InputError, match="gives no further frames"):
            watcher.newest()


class Held(Source):
    """Frames that a test puts."""

    def __init__(self) -> None:
        self.slot: Newest[Frame] = Newest()
        self.failure: InputError | None = None
        self.closed = False

    def newest(self, seconds: float) -> Frame | None:
        if self.failure is not None:
            raise self.failure
        return self.slot.take(0.005)

    def close(self) -> None:
        self.closed = True


def test_a_pipeline_answers_what_generate_answers(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    frames = list(np.random.default_rng(4).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))
    time = MovedTime()
    source = Scripted(time, [(0.1 * number, each) for number, each in enumerate([*frames, frames[0]])])
    with Watcher.open(
        tiny_bundle, source, QUESTION, plan="prunesid-16", threads=1, time=time, max_new_tokens=6
    ) as watcher:
        seen = [each.answer for each in watcher]
        pipeline = watcher._pipeline
    assert source.closed
    with pytest.raises(UsageError, match="is closed"):
        pipeline.generate(frames[0], QUESTION)
    with Pipeline.open(tiny_bundle, "prunesid-16", threads=1) as fresh:
        expected = [fresh.generate(each, QUESTION, max_new_tokens=6) for each in [*frames, frames[0]]]
    assert [each.token_ids for each in seen if each] == [each.token_ids for each in expected]


def test_a_deadline_ends_a_real_answer_where_it_is(tiny_bundle: Path) -> None:
    """Its tokens are the first of the whole answer."""
    time = MovedTime()
    with Pipeline.open(tiny_bundle, "prunesid-16", threads=1) as pipeline:
        whole = pipeline.generate(GREY, QUESTION, max_new_tokens=12)
        decode = pipeline.stages.decode

        def timed(*arguments: Any) -> Any:
            time.passed += 0.1
            return decode(*arguments)

        pipeline.stages.decode = timed  # type: ignore[method-assign]
        source = Scripted(time, [(0.0, GREY)])
        (seen,) = Watcher(pipeline, source, QUESTION, time=time, deadline=0.45, max_new_tokens=12)
    assert seen.answer is not None
    assert seen.cut
    assert seen.answer.token_ids == whole.token_ids[:5]
    assert seen.answer.text == whole.text[: len(seen.answer.text)]
