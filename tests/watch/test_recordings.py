"""Folders and videos as sources."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from slow_answers import BEGAN, MovedTime, SlowPipeline

from vtexport.errors import InputError, UsageError
from vtexport.watch import Watcher, open_source
from vtexport.watch.recordings import Recording, Reel
from vtexport.watch.time import RecordedTime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, 0.png to 9.png, and what is none."""
    found = tmp_path / "frames"
    found.mkdir()
    for number in range(10):
        write(found / f"{number}.png", 20 * number)
    (found / "notes.txt").write_text("x")
    (found / ".10.png").write_bytes(b"half")
    return found


def write(path: Path, level: int, changed: float | None = None) -> None:
    Image.new("RGB", (32, 24), (level, level, level)).save(path)
    if changed is not None:
        os.utime(path, (changed, changed))


def test_a_folder_plays_at_its_pace(folder: Path) -> None:
    time = MovedTime()
    source = open_source(str(folder), fps=10, time=time)
    taken = []
    while not source.ended:
        if (frame := source.newest(1.0)) is not None:
            taken.append((frame.name, frame.number, frame.position, frame.captured, frame.wall))
            time.passed += 0.25
    assert [each[0] for each in taken] == ["0.png", "2.png", "5.png", "7.png", "9.png"]
    assert [each[1] for each in taken] == [0, 2, 5, 7, 9]
    assert [each[3] for each in taken] == pytest.approx([0, 0.2, 0.5, 0.7, 0.9])
    assert [each[4] - BEGAN for each in taken] == pytest.approx([0, 0.2, 0.5, 0.7, 0.9])
    assert source.dropped == 5


def test_it_waits_for_a_frame_no_longer_than_asked(folder: Path) -> None:
    time = MovedTime()
    source = open_source(str(folder), fps=2, time=time)
    assert source.newest(0.1) is not None
    assert source.newest(0.1) is None
    assert time.now() == pytest.approx(0.1)
    assert not source.ended


def test_offline_no_frame_is_dropped(folder: Path) -> None:
    """The recording's time stands still while an answer is computed; `every` is of that time."""
    moved = MovedTime()
    for every, numbers in ((0.0, list(range(10))), (0.3, [0, 3, 6, 9])):
        time = RecordedTime()
        source = open_source(str(folder), fps=10, time=time)
        watcher = Watcher(SlowPipeline(moved, first=5.0), source, "x?", time=time, every=every)  # type: ignore[arg-type]
        seen = list(watcher)
        assert [each.frame.number for each in seen] == numbers
        assert [each.frame.position for each in seen] == pytest.approx([number / 10 for number in numbers])
        assert sum(each.dropped for each in seen) + len(seen) == 10
        assert sum(each.missed for each in seen) == 0


def test_a_followed_folder_gives_the_newest_file_that_came(folder: Path) -> None:
    time = MovedTime()
    for path in folder.glob("*.png"):
        os.utime(path, (BEGAN - 10, BEGAN - 10))
    source = open_source(str(folder), follow=True, time=time)
    assert source.newest(0.2) is None
    time.passed = 1.0
    for number, at in ((20, 0.3), (21, 0.9), (22, 0.6)):
        write(folder / f"{number}.png", 0, BEGAN + at)
    write(folder / ".23.png", 0, BEGAN + 0.95)  # not whole yet
    frame = source.newest(0.2)
    assert frame is not None
    assert (frame.name, frame.number, source.dropped) == ("21.png", 2, 2)
    assert frame.captured == pytest.approx(0.9, abs=1e-3)
    assert frame.wall == pytest.approx(BEGAN + 0.9, abs=1e-3)
    assert source.newest(0.2) is None
    (folder / ".23.png").rename(folder / "23.png")
    frame = source.newest(0.2)
    assert frame is not None
    assert (frame.name, source.dropped, source.ended) == ("23.png", 2, False)


def test_a_followed_folder_that_goes(folder: Path) -> None:
    source = open_source(str(folder), follow=True, time=MovedTime())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(InputError, match=re.escape("cannot be read (No such file or directory)")):
        source.newest(0.1)


class ShortReel(Reel):
    """States ten images and has four, as damaged videos do."""

    count = 10

    def __init__(self) -> None:
        self.at = 0

    def skip(self) -> bool:
        self.at += 1
        return self.at <= 4

    def read(self) -> tuple[Any, None] | None:
        return (self.at, None) if self.skip() else None


def test_a_reel_shorter_than_it_says_ends() -> None:
    time = MovedTime()
    source = Recording(ShortReel(), 10, time)
    assert source.newest(1.0) is not None
    time.passed = 5.0
    assert source.newest(1.0) is None
    assert source.ended
    assert source.dropped == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("empty", {}, "has no image files; give a folder with some (.avif, .bmp"),
        ("nothing.mp4", {}, "there is no nothing.mp4 (--source); give a camera such as /dev/video0"),
        ("frames", {"fps": 0.0}, "fps is 0; give a number"),
        ("frames", {"fps": float("nan")}, "fps is nan"),
        ("frames", {"fps": 5.0, "follow": True}, "--follow is for a folder, with neither --fps nor --offline"),
        ("frames", {"time": RecordedTime(), "follow": True}, "--follow is for a folder"),
        ("/dev/video99", {"fps": 5.0}, "--fps is for recordings, and /dev/video99 is live"),
        ("rtsp://me:secret@camera/1", {"fps": 5.0}, "--fps is for recordings, and rtsp://camera/1 is live"),
        ("0", {"time": RecordedTime()}, "--offline is for recordings, and 0 is live"),
        ("a ! appsink", {"follow": True}, "--follow is for a folder"),
    ],
)
def test_sources_that_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    with pytest.raises((InputError, UsageError)) as found:
        open_source(name, **options)
    assert message in str(found.value)
    assert len(str(found.value)) <= 300


def test_frames_of_a_folder_reach_a_real_pipeline(folder: Path, tiny_bundle: Path) -> None:
    with Watcher.open(
        tiny_bundle, str(folder), "x?", plan="prunesid-16", threads=1, fps=1000, max_new_tokens=2
    ) as all_:
        seen = list(all_)
    assert seen[-1].frame.name == "9.png"
    assert all(each.answer is not None for each in seen)
    assert sum(each.dropped for each in seen) + len(seen) == 10
    assert np.isfinite([each.age for each in seen]).all()
