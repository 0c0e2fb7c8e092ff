"""Sources by the text that names them."""

from __future__ import annotations

import math
import re
from pathlib import Path

from vtexport.errors import InputError, MissingDependencyError, UsageError, quoted
from vtexport.watch.camera import Camera, VideoReel, opencv
from vtexport.watch.frames import Source
from vtexport.watch.recordings import FolderReel, FollowedFolder, Recording
from vtexport.watch.time import RealTime

FOLDER_FPS = 10.0
_DEVICE = re.compile(r"(?:/dev/video)?\d{1,4}")
_PASSWORD = re.compile(r"//[^/@]*@")  # and user name, which no sentence repeats
_URL = re.compile(r"(?:rtsp|rtsps|rtmp|http|https|udp|tcp)://", re.IGNORECASE)


def open_source(name: str, *, fps: float | None = None, follow: bool = False, time: RealTime | None = None) -> Source:
    """Opens the source of a name.

    Args:
        name: a number or /dev/video... for a camera; a GStreamer pipeline, which has " ! " in it; a URL such as
            rtsp://...; a video file; or a folder of images.
        fps: frames a second of a recording; a video's own, and 10 of a folder, when left out.
        follow: a folder's frames are the files that come into it.
        time: that passes; the machine's when left out.

    Raises:
        UsageError: a value is wrong, or is not for this kind of source.
        InputError: there is no such source, or it cannot be read.
        MissingDependencyError: it takes OpenCV, or its GStreamer part, which is not there.
    """
    time = time or RealTime()
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UsageError(f"fps is {fps:g}; give a number of frames a second above 0 and at most 1000")
    path, shown = Path(name).expanduser(), quoted(_PASSWORD.sub("//", name), limit=120)
    kind = _kind(name, path)
    if kind not in ("folder", "video", None) and (fps is not None or time.stands_still):
        option = "--fps" if fps is not None else "--offline"
        raise UsageError(f"{option} is for recordings, and {shown} is live; leave it out")
    if follow and (kind != "folder" or fps is not None or time.stands_still):
        raise UsageError("--follow is for a folder, with neither --fps nor --offline; leave it out")
    if kind == "pipeline":
        cv2 = opencv()
        # In its own words: "    GStreamer:                   NO"
        if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
            raise MissingDependencyError(
                "this OpenCV was built without GStreamer, as pip's is; use the system's (python3-opencv, JetPack's), "
                "or give a device such as /dev/video0"
            )
        return Camera(name, "the GStreamer pipeline", time, api=cv2.CAP_GSTREAMER, may_end=True)
    if kind == "url":
        return Camera(name, shown, time)
    if kind == "device":
        return Camera(int(re.sub(r"\D", "", name)), f"camera {name}", time)
    if kind == "folder":
        return FollowedFolder(path, time) if follow else Recording(FolderReel(path), fps or FOLDER_FPS, time)
    if kind is None:
        raise InputError(
            f"there is no {shown} (--source); give a camera such as /dev/video0, a folder of images, a video file, an "
            "rtsp:// URL or a GStreamer pipeline"
        )
    reel = VideoReel(path)
    if (rate := fps or reel.fps) is None:
        reel.close()
        raise UsageError(f"{shown} does not say how many frames a second it has; give --fps")
    return Recording(reel, rate, time)


def _kind(name: str, path: Path) -> str | None:
    """The kind of source that a text names, None for what is not there."""
    if " ! " in name:
        return "pipeline"
    if _URL.match(name):
        return "url"
    if path.is_dir():
        return "folder"
    if _DEVICE.fullmatch(name):
        return "device"
    return "video" if path.is_file() else None
