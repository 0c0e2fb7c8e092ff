"""Frames from files: recordings that play at their own pace, and a folder into which another program writes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path

from vtexport.errors import InputError, quoted
from vtexport.runtime.vision import ImageLike
from vtexport.watch.frames import Frame, Source
from vtexport.watch.time import RealTime

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}
_ROUNDING = 1e-6  # of a frame, so that a frame that is due now is not missed by a rounding
_BETWEEN_LOOKS = 0.05  # seconds


class Reel(ABC):
    """Images one after the other.

    Attributes:
        count: How many there are; None where that is not known.
    """

    count: int | None = None

    @abstractmethod
    def skip(self) -> bool:
        """Passes over one image; False where there is none."""

    @abstractmethod
    def read(self) -> tuple[ImageLike, str | None] | None:
        """The next image and the name of its file, if it has one; None where there is none."""

    def close(self) -> None:  # noqa: B027
        """Gives the file back."""


class FolderReel(Reel):
    """The image files of a folder in the order of their names.

    Raises:
        InputError: there are none, or the folder cannot be read.
    """

    def __init__(self, folder: Path):
        self._files = sorted(image_files(folder))
        if not self._files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{folder} (--source) has no image files; give a folder with some ({kinds})")
        self.count = len(self._files)
        self._at = 0

    def skip(self) -> bool:
        """Passes over one file."""
        self._at += 1
        return self._at <= len(self._files)

    def read(self) -> tuple[ImageLike, str | None] | None:
        """Path and name of the next file, which is opened by who wants to see it."""
        if self._at >= len(self._files):
            return None
        self._at += 1
        path = self._files[self._at - 1]
        return path, path.name


class Recording(Source):
    """Plays a reel as a camera would have given it: frames that come while nobody looks are dropped.

    Args:
        reel: the images.
        fps: frames a second.
        time: that passes.
    """

    def __init__(self, reel: Reel, fps: float, time: RealTime):
        self._reel, self._fps, self._time = reel, fps, time
        self._next = 0
        self._began: float | None = None

    def newest(self, seconds: float) -> Frame | None:
        """The last frame that is due by now."""
        now = self._time.now()
        if self._began is None:
            self._began = now
        if self._next >= self._most:
            self.ended = True
            return None
        wait = self._began + self._next / self._fps - now
        if wait > 0:
            self._time.sleep(min(wait, seconds))
            if wait > seconds:
                return None
        due = math.floor((self._time.now() - self._began) * self._fps + _ROUNDING)
        due = int(max(self._next, min(due, self._most - 1)))
        while self._next < due and self._reel.skip():
            self._next += 1
            self.dropped += 1
        read = self._reel.read() if self._next == due else None
        if read is None:
            self.ended = True
            return None
        image, name = read
        number, position = self._next, self._next / self._fps
        self._next += 1
        captured = self._began + position
        wall = self._time.wall() - (self._time.now() - captured)
        return Frame(image, number, captured, wall, name, position)

    @property
    def _most(self) -> float:
        return math.inf if self._reel.count is None else self._reel.count

    def close(self) -> None:
        """Gives the file back."""
        self._reel.close()


class FollowedFolder(Source):
    """A folder into which another program writes: of the files that have come since the last look the newest.

    A file is newer by the time of its last change. Files that were there before do not count. Who writes them gives
    them their name last (another name or a leading dot, then a rename), so that none is read in the middle.

    Raises:
        InputError: the folder cannot be read.
    """

    def __init__(self, folder: Path, time: RealTime):
        self._folder, self._time = folder, time
        self._number = 0
        self._last = max(self._files(), default=(0, ""))

    def newest(self, seconds: float) -> Frame | None:
        """The newest file."""
        end = self._time.now() + seconds
        while not (found := [each for each in self._files() if each > self._last]):
            left = end - self._time.now()
            if left <= 0:
                return None
            self._time.sleep(min(left, _BETWEEN_LOOKS))
        self._last = changed, name = max(found)
        self.dropped += len(found) - 1
        self._number += len(found)
        wall = changed / 1e9
        captured = self._time.now() - max(0.0, self._time.wall() - wall)
        return Frame(self._folder / name, self._number - 1, captured, wall, name)

    def _files(self) -> list[tuple[int, str]]:
        found = []
        for path in image_files(self._folder):
            try:
                found.append((path.stat().st_mtime_ns, path.name))
            except FileNotFoundError:  # it went meanwhile
                continue
        return found


def image_files(folder: Path) -> list[Path]:
    """Files of a folder whose names are those of images and begin with no dot, in no order.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        reason = quoted(error.strerror or error, folder)
        raise InputError(f"{folder} (--source) cannot be read ({reason}); give a folder of images") from error
