"""The first half of what runs on an image: preprocessing and the vision graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtexport.bundle.reader import Bundle
from vtexport.errors import InputError
from vtexport.runtime.answers import Clock
from vtexport.runtime.images import Crop, output_size, pixel_values, read_image
from vtexport.runtime.onnxruntime_backend import Session

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True)
class Seen:
    """One image's `features` and signals by name, what part of it they show, and what was passed over in its file."""

    signals: dict[str, np.ndarray]
    size: tuple[int, int]  # width and height of the upright image, pixels
    crop: Crop
    warnings: list[str]


class VisionTower:
    """One vision graph of a bundle, loaded."""

    def __init__(self, bundle: Bundle, graph: str, device: str, threads: int | None):
        manifest = bundle.manifest
        self._image, self._precision, self._tokens = manifest.image, manifest.precision, manifest.vision.tokens
        self._session = Session(bundle.path(manifest.graphs[graph].file), device, threads)
        self._session.check_input("pixel_values", 3, *output_size(manifest.image))

    def look(self, image: ImageLike, clock: Clock) -> Seen:
        """Runs the graph on one image.

        Raises:
            InputError: the image cannot be read, or the numbers left the range of the bundle's precision.
        """
        loaded = read_image(image)
        pixels, crop = pixel_values(loaded.image, self._image)
        clock.lap("preprocess")
        signals = self.run({"pixel_values": pixels})
        check_finite(signals["features"], "the vision tower", self._precision)
        clock.lap("vision")
        return Seen(signals, loaded.image.size, crop, loaded.warnings)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph alone: `pixel_values` [1, 3, H, W] to the features and signals, as they come."""
        return self._session.run(inputs)

    def patches(self, seen: Seen) -> np.ndarray:
        """[T, D]: the features without CLS."""
        return seen.signals["features"][0, -self._tokens :]


def check_finite(values: np.ndarray, stage: str, precision: str) -> None:
    """Stops where a stage left the range of numbers: what follows would be noise that looks like an answer.

    Raises:
        InputError: one of `values` is not finite.
    """
    if not np.isfinite(values).all():
        advice = (
            "build the bundle with --precision fp32" if precision == "float16" else "check the checkpoint's weights"
        )
        raise InputError(f"{stage} gave values beyond the range of {precision} for this input; {advice}")
