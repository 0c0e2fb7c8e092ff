"""Cameras, streams and videos by OpenCV (the extra `camera`)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.errors import InputError, MissingDependencyError, quoted
from vtexport.runtime.vision import ImageLike
from vtexport.watch.frames import Frame, Newest, Source
from vtexport.watch.recordings import Reel
from vtexport.watch.time import RealTime

_SILENT = 5.0  # seconds without a frame after which a camera counts as gone
_JOIN = 2.0  # seconds for a reader to end; one that the driver holds is left alone


def opencv() -> Any:
    """OpenCV's module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"cameras and videos are read by OpenCV, which cannot be imported ({quoted(error, limit=100)}); run "
            "pip install 'vtexport[camera]', or give a folder of images"
        ) from error
    return cv2


class VideoReel(Reel):
    """The frames of a video file.

    Attributes:
        fps: Frames a second that the file states, None where it states none.

    Raises:
        MissingDependencyError: there is no OpenCV.
        InputError: OpenCV cannot read the file.
    """

    def __init__(self, file: Path):
        cv2 = opencv()
        self._capture = cv2.VideoCapture(str(file))
        if not self._capture.isOpened():
            raise InputError(f"{file} (--source) cannot be read as a video; convert it to H.264 in MP4, or give images")
        fps, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = float(fps) if 0 < fps < 1000 else None
        self.count = int(count) if 0 < count < 2**31 else None

    def skip(self) -> bool:
        """Passes over one frame without its colours being computed."""
        return bool(self._capture.grab())

    def read(self) -> tuple[ImageLike, str | None] | None:
        """The next frame, [H, W, 3] uint8, RGB."""
        there, image = self._capture.read()
        return (_rgb(image), None) if there else None

    def close(self) -> None:
        """Gives the file back."""
        self._capture.release()


class Camera(Source):
    """A live source, which a thread reads without a pause, so that no old frame waits in the driver's queue.

    Args:
        what: a number or path of a device, a GStreamer pipeline that ends in `appsink`, or a URL.
        title: for sentences.
        time: that passes.
        api: OpenCV's number of how to read it; 0 for any.
        may_end: True where the end of the frames is no failure.

    Raises:
        MissingDependencyError: there is no OpenCV.
        InputError: it cannot be opened.
    """

    def __init__(self, what: int | str, title: str, time: RealTime, *, api: int = 0, may_end: bool = False):
        cv2 = opencv()
        self._title, self._time, self._may_end = title, time, may_end
        self._capture = cv2.VideoCapture(what, api)
        if not self._capture.isOpened():
            raise InputError(
                f"{title} (--source) cannot be opened; check that it is there and that nothing else has it"
            )
        if isinstance(what, int):
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver knows it
        self._slot: Newest[tuple[int, float, float, np.ndarray]] = Newest()
        self._closing = self._over = False
        self._came = time.now()
        self._thread = threading.Thread(target=self._read, name="vtexport-camera", daemon=True)
        self._thread.start()

    def newest(self, seconds: float) -> Frame | None:
        """The newest frame.

        Raises:
            InputError: the camera gives none any more.
        """
        found = self._slot.take(seconds)
        self.dropped = self._slot.replaced
        if found is not None:
            number, captured, wall, image = found
            return Frame(_rgb(image), number, captured, wall)
        if self._over and not self._slot.full:
            if not self._may_end:
                raise InputError(f"{self._title} (--source) gives no further frames; check the camera and its cable")
            self.ended = True
        elif self._time.now() - self._came > _SILENT:
            raise InputError(f"{self._title} (--source) has given no frame for {_SILENT:g} s; check the camera")
        return None

    def _read(self) -> None:
        number = 0
        while not self._closing:
            there, image = self._capture.read()
            if not there:
                break
            self._came = self._time.now()
            self._slot.put((number, self._came, self._time.wall(), image))
            number += 1
        self._over = True

    def close(self) -> None:
        """Gives the device back."""
        self._closing = True
        self._thread.join(_JOIN)
        if not self._thread.is_alive():  # or the driver would lose what it writes into
            self._capture.release()


def _rgb(image: np.ndarray) -> np.ndarray:
    """OpenCV's order of colours the other way round."""
    return np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
