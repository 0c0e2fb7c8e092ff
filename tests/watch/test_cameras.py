"""Cameras by a stand-in of OpenCV, videos by OpenCV itself where it is installed."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import PATIENCE, wait_for
from slow_answers import MovedTime

from vtexport.errors import InputError, MissingDependencyError
from vtexport.watch import camera, open_source, sources
from vtexport.watch.frames import Frame
from vtexport.watch.time import RecordedTime


class Device:
    """A capture whose frames a test gives; None ends them."""

    def __init__(self, what: Any, api: int) -> None:
        self.what, self.api = what, api
        self.frames: queue.Queue[np.ndarray | None] = queue.Queue()
        self.released = False
        self.set_to: dict[int, Any] = {}

    def isOpened(self) -> bool:  # noqa: N802
        return self.what not in (9, "rtsp://gone/1")

    def set(self, name: int, value: Any) -> bool:
        self.set_to[name] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        image = self.frames.get(timeout=PATIENCE)
        return image is not None, image

    def release(self) -> None:
        self.released = True


class StandIn:
    """The few names of OpenCV that cameras need."""

    CAP_PROP_BUFFERSIZE, CAP_GSTREAMER = 38, 1800

    def __init__(self, gstreamer: str = "YES (1.20.3)") -> None:
        self.opened: list[Device] = []
        self.gstreamer = gstreamer

    def VideoCapture(self, what: Any, api: int) -> Device:  # noqa: N802
        self.opened.append(Device(what, api))
        return self.opened[-1]

    def getBuildInformation(self) -> str:  # noqa: N802
        return (
            f"  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   {self.gstreamer}\n"
        )


@pytest.fixture
def cv(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr(camera, "opencv", lambda: found)
    monkeypatch.setattr(sources, "opencv", lambda: found)
    return found


@pytest.fixture
def opened(cv: StandIn) -> Iterator[tuple[camera.Camera, Device, MovedTime]]:
    time = MovedTime()
    source = open_source("/dev/video3", time=time)
    assert isinstance(source, camera.Camera)
    device = cv.opened[0]
    yield source, device, time
    device.frames.put(None)
    source.close()


def image(level: int) -> np.ndarray:
    """One pixel, blue as OpenCV has colours."""
    return np.array([[[level, 0, 0]]], np.uint8)


def taken(source: camera.Camera) -> Frame:
    frame = source.newest(PATIENCE)
    assert frame is not None
    return frame


def test_the_newest_frame_replaces_those_that_nobody_took(opened: tuple[camera.Camera, Device, MovedTime]) -> None:
    source, device, time = opened
    assert (device.what, device.set_to) == (3, {38: 1})
    device.frames.put(image(1))
    wait_for(lambda: source._slot.full)
    time.passed = 0.5
    for level in (2, 3):
        device.frames.put(image(level))
    wait_for(lambda: source._slot.replaced == 2)
    frame = taken(source)
    assert np.asarray(frame.image).tolist() == [[[0, 0, 3]]]  # red, green, blue
    assert (frame.number, frame.captured, source.dropped) == (2, 0.5, 2)
    assert source.newest(0.0) is None
    device.frames.put(image(4))
    assert taken(source).number == 3


def test_a_camera_that_ends_has_failed(opened: tuple[camera.Camera, Device, MovedTime]) -> None:
    source, device, _ = opened
    device.frames.put(image(1))
    device.frames.put(None)
    wait_for(lambda: source._over)
    assert taken(source).number == 0  # what came before is not lost
    with pytest.raises(InputError, match=re.escape("camera /dev/video3 (--source) gives no further frames; check")):
        source.newest(0.0)
    source.close()
    assert device.released


def test_a_camera_that_falls_silent_has_failed(opened: tuple[camera.Camera, Device, MovedTime]) -> None:
    source, device, time = opened
    device.frames.put(image(1))
    assert taken(source).number == 0
    time.passed = 4.9
    assert source.newest(0.0) is None
    time.passed = 5.1
    with pytest.raises(InputError, match="has given no frame for 5 s"):
        source.newest(0.0)


def test_a_gstreamer_pipeline_may_end(cv: StandIn) -> None:
    source = open_source("videotestsrc num-buffers=1 ! videoconvert ! appsink", time=MovedTime())
    device = cv.opened[0]
    assert (device.what, device.api) == ("videotestsrc num-buffers=1 ! videoconvert ! appsink", 1800)
    device.frames.put(image(1))
    device.frames.put(None)
    assert source.newest(PATIENCE) is not None
    wait_for(lambda: source.newest(0.0) is None and source.ended)
    source.close()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("9", InputError, "camera 9 (--source) cannot be opened; check that it is there"),
        ("rtsp://gone/1", InputError, "rtsp://gone/1 (--source) cannot be opened"),
        ("v4l2src ! appsink", MissingDependencyError, "this OpenCV was built without GStreamer, as pip's is"),
    ],
)
def test_what_cannot_be_opened(cv: StandIn, name: str, error: type[Exception], message: str) -> None:
    cv.gstreamer = "NO"
    with pytest.raises(error) as found:
        open_source(name)
    assert message in str(found.value)


def test_without_opencv(blocked_import: Callable[[str], None]) -> None:
    blocked_import("cv2")
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'vtexport[camera]', or give a folder")):
        open_source("0")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twenty frames at 10 a second, from blue to red."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (the extra camera)")
    path = tmp_path / "ride.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), (240 - 12 * number, 0, 12 * number), np.uint8))
    writer.release()
    return path


def test_a_video_plays_at_its_own_pace(video: Path) -> None:
    time = MovedTime()
    source = open_source(str(video), time=time)
    red = []
    while not source.ended:
        if (frame := source.newest(1.0)) is not None:
            level = float(np.asarray(frame.image)[..., 0].mean())
            red.append((frame.number, level))
            assert frame.position == pytest.approx(frame.number / 10)
            time.passed += 0.35
    source.close()
    assert [number for number, _ in red] == [0, 3, 7, 10, 14, 17, 19]
    for number, level in red:
        assert level == pytest.approx(12 * number, abs=6)  # JPEG
    assert source.dropped + len(red) == 20


def test_a_video_offline_gives_every_frame(video: Path) -> None:
    source = open_source(str(video), time=RecordedTime())
    numbers = []
    while (frame := source.newest(1.0)) is not None:
        numbers.append(frame.number)
    assert numbers == list(range(20))
    assert source.ended
    source.close()


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (the extra camera)")
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match="cannot be read as a video; convert it to H"):
        open_source(str(tmp_path / "a.mp4"))
