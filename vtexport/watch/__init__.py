"""A loop that asks a bundle about the newest frame of a camera, for `vtexport watch` and for robotics applications."""

from vtexport.watch.frames import Frame, Source
from vtexport.watch.sources import open_source
from vtexport.watch.watcher import Observation, Watcher

__all__ = ["Frame", "Observation", "Source", "Watcher", "open_source"]
