"""The measurement itself, on a small bundle: turns, images that fail, ends of every kind."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_measurement import SETTINGS, contenders, header, noise

from vtexport.errors import InputError, UsageError
from vtexport.measure import bench, memory
from vtexport.measure.bench import STOPPED, Bench, Hooks, Request, fits
from vtexport.measure.calibration import calibrate
from vtexport.measure.memory import plan_memory
from vtexport.measure.partial import Lines
from vtexport.measure.pictures import Pictures
from vtexport.measure.record import Failure, Memory, Sample, StateAt
from vtexport.measure.soak import SoakBench

pytestmark = pytest.mark.usefixtures("no_calibration")


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    with Lines(tmp_path / "r.json", header()) as lines:
        yield lines


def request_of(bundle: Path, *names: str, **more: Any) -> Request:
    given: dict[str, Any] = {"samples": 4, "warm_up": 1, "memory": False} | more
    pictures = given.pop("pictures", None) or noise(3)
    return Request(contenders(bundle, names), SETTINGS, pictures, **given)


def samples(lines: Lines) -> list[Sample]:
    return [line for line in lines.all() if isinstance(line, Sample)]


def test_plans_answer_by_turns_about_the_same_images(eval_bundle: Path, lines: Lines) -> None:
    done: list[int] = []
    asked = request_of(eval_bundle, "none", "prunesid-8", "prunesid-16", samples=6)
    assert Bench(asked, lines, Hooks(done=done.append)).run() is None
    found = samples(lines)
    assert len(found) == sum(done) == 18
    for turn in range(6):
        of_turn = [each for each in found if each.turn == turn]
        assert {each.plan for each in of_turn} == {"none", "prunesid-8", "prunesid-16"}
        assert {each.image for each in of_turn} == {turn % 3}
        assert [each.place for each in of_turn] == [0, 1, 2]
    assert set(Counter((each.plan, each.place) for each in found).values()) == {2}
    assert [each.visual_tokens for each in found if each.plan == "prunesid-8"] == [8] * 6
    assert all(len(each.decode_ms) == 2 for each in found)
    assert [line.when for line in lines.all() if isinstance(line, StateAt)] == ["before", "after"]


def test_one_plan_at_a_time_answers_blocks(eval_bundle: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real = [], bench.MeasuredPlan
    alive: set[str] = set()

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self.contender.name)
            alive.add(self.contender.name)
            assert len(alive) == 1

        def close(self) -> None:
            super().close()
            alive.discard(self.contender.name)

    monkeypatch.setattr(bench, "MeasuredPlan", Watched)
    asked = request_of(eval_bundle, "none", "prunesid-8", samples=8, one_at_a_time=True)
    assert asked.answers_per_turn == 2
    assert Bench(asked, lines, Hooks()).run() is None
    assert Counter(opened) == {"none": 4, "prunesid-8": 4}
    assert Counter(each.plan for each in samples(lines)) == {"none": 8, "prunesid-8": 8}


def test_a_time_is_kept_to_the_end_of_the_turn(eval_bundle: Path, lines: Lines) -> None:
    asked = request_of(eval_bundle, "none", "prunesid-8", samples=None, seconds=0.05)
    assert Bench(asked, lines, Hooks()).run() is None
    counts = Counter(each.plan for each in samples(lines))
    assert counts["none"] == counts["prunesid-8"] >= 1


def test_an_image_that_vanishes_is_named_and_the_rest_goes_on(
    tiny_bundle: Path, photo: Path, lines: Lines, tmp_path: Path
) -> None:
    gone = Path(shutil.copy(photo, tmp_path / f"gone{photo.suffix}"))
    pictures = Pictures(["photo", "gone"], [str(photo), str(gone)], synthetic=False)
    said: list[str] = []

    def stage(text: str) -> None:
        said.append(text)
        if text.startswith("measuring prunesid"):
            gone.unlink()

    asked = request_of(tiny_bundle, "prunesid-16", "prunesid-32", pictures=pictures)
    assert Bench(asked, lines, Hooks(stage)).run() is None
    (failure,) = (line for line in lines.all() if isinstance(line, Failure))
    assert (failure.image, failure.plan in {"prunesid-16", "prunesid-32"}) == ("gone", True)
    assert {each.image for each in samples(lines)} == {0}
    assert len(samples(lines)) == 7  # of two plans in four turns, but for the failure
    assert any(text.startswith("gone is left out from here on") for text in said)


def test_when_no_image_is_left_it_ends_and_keeps_what_it_has(
    tiny_bundle: Path, photo: Path, lines: Lines, tmp_path: Path
) -> None:
    gone = Path(shutil.copy(photo, tmp_path / f"gone{photo.suffix}"))
    counted: list[int] = []

    def done(count: int) -> None:
        counted.append(count)
        if len(counted) == 2:
            gone.unlink()

    asked = request_of(tiny_bundle, "prunesid-16", pictures=Pictures(["gone"], [str(gone)], synthetic=False))
    assert Bench(asked, lines, Hooks(done=done)).run() == "no image is left that can be read"
    assert len(samples(lines)) == 2


def stops_after(count: int) -> Callable[[], bool]:
    steps = itertools.count()
    return lambda: next(steps) >= count


def test_a_signal_ends_it_and_keeps_whole_answers(tiny_bundle: Path, lines: Lines) -> None:
    """Each answer asks 11 times: one of the warm-up, three whole ones, and a part."""
    asked = request_of(tiny_bundle, "prunesid-16")
    assert Bench(asked, lines, Hooks(stop=stops_after(11 * 4 + 5))).run() == STOPPED
    assert len(samples(lines)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("the numbers left the range")])
def test_an_error_after_the_first_sample_keeps_it(tiny_bundle: Path, lines: Lines, error: BaseException) -> None:
    def fail(count: int) -> None:
        raise error

    ended = Bench(request_of(tiny_bundle, "prunesid-16"), lines, Hooks(done=fail)).run()
    assert ended == (str(error) or STOPPED)
    assert len(samples(lines)) == 1


def test_an_error_before_it_is_one(tiny_bundle: Path, lines: Lines) -> None:
    asked = request_of(tiny_bundle, "prunesid-16")
    asked = dataclasses.replace(asked, settings=dataclasses.replace(SETTINGS, threads=0))
    with pytest.raises(UsageError, match="threads is 0"):
        Bench(asked, lines, Hooks()).run()


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"warm_up": -1},
        {"seed": -1},
        {"settings": dataclasses.replace(SETTINGS, new_tokens=0)},
    ],
)
def test_numbers_out_of_range(tiny_bundle: Path, lines: Lines, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give a whole number from"):
        Bench(dataclasses.replace(request_of(tiny_bundle, "prunesid-16"), **wrong), lines, Hooks())


def test_a_soak_accounts_for_every_image(tiny_bundle: Path, lines: Lines) -> None:
    """At a rate that no machine keeps: what is not answered is counted."""
    asked = request_of(tiny_bundle, "prunesid-16", samples=None, seconds=0.3, rate=10_000.0)
    assert SoakBench(asked, lines, Hooks()).run() is None
    found = samples(lines)
    assert all(each.due_s is not None and each.late_ms is not None and each.late_ms > 0 for each in found)
    dues = [each.due_s or 0.0 for each in found]
    assert dues == sorted(set(dues))
    assert all(each.due_s is not None and each.due_s <= each.at_s for each in found)


def test_a_soak_waits_for_its_images_and_stops_while_it_waits(tiny_bundle: Path, lines: Lines) -> None:
    answered = False

    def done(count: int) -> None:
        nonlocal answered
        answered = True

    asked = request_of(tiny_bundle, "prunesid-16", samples=None, seconds=1e6, rate=1e-3)
    assert SoakBench(asked, lines, Hooks(done=done, stop=lambda: answered)).run() == STOPPED
    (only,) = samples(lines)
    assert only.due_s == 0.0
    assert only.late_ms is not None
    assert only.late_ms < 0


def test_a_soak_takes_one_plan_and_a_rate(tiny_bundle: Path, lines: Lines) -> None:
    with pytest.raises(UsageError, match="a soak takes one plan"):
        SoakBench(request_of(tiny_bundle, "prunesid-16", "prunesid-32", rate=1.0), lines, Hooks()).run()


def test_memory_is_that_of_a_process_of_its_own(tiny_bundle: Path) -> None:
    (contender,) = contenders(tiny_bundle, ["prunesid-16"])
    found = plan_memory(contender, SETTINGS, 0)
    assert found.reason is None
    assert found.loaded_rss_bytes
    assert found.peak_rss_bytes
    assert 10e6 < found.loaded_rss_bytes <= found.peak_rss_bytes
    assert found.open_s is not None
    assert found.first_answer_ms is not None
    failed = plan_memory(contender, SETTINGS, b"nowhere.png")
    assert failed.peak_rss_bytes is None
    assert failed.reason is not None
    assert "nowhere.png" in failed.reason


def test_a_process_that_dies_gives_a_reason(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "echo 'no memory' >&2; exit 9"]
    monkeypatch.setattr(memory, "_WORKER", command)
    found = plan_memory(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS, 0)
    assert found.reason == "its process ended with 9: no memory"


def test_plans_that_do_not_fit_together_are_known_by_their_peaks() -> None:
    assert fits([Memory(plan="a", peak_rss_bytes=1), Memory(plan="b", peak_rss_bytes=1)]) is True
    assert fits([Memory(plan="a", peak_rss_bytes=10**18)]) is False
    assert fits([Memory(plan="a", reason="unknown")]) is None


def test_the_machines_speed_is_above_nothing() -> None:
    found = calibrate("before", 1)
    assert found.threads == 1
    assert found.gemm_gflops > 0
    assert found.copy_gb_per_s > 0
