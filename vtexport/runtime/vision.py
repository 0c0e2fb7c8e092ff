"""The vision stage: preprocessing of an image and the vision graph."""

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
class VisionOutput:
    """One image after the vision graph.

    Attributes:
        outputs: `features` and the signals by name.
        image_size: Width and height of the upright image, pixels.
        crop: The part of it that they are of.
        warnings: What was passed over in its file.
    """

    outputs: dict[str, np.ndarray]
    image_size: tuple[int, int]
    crop: Crop
    warnings: list[str]


class VisionStage:
    """One vision graph of a bundle, loaded."""

    def __init__(self, bundle: Bundle, graph: str, device: str, threads: int | None):
        manifest = bundle.manifest
        self._image, self._precision, self._tokens = manifest.image, manifest.precision, manifest.vision.tokens
        self._session = Session(bundle.path(manifest.graphs[graph].file), device, threads)
        self._session.check_input("pixel_values", 3, *output_size(manifest.image))

    def run(self, image: ImageLike, clock: Clock) -> VisionOutput:
        """Runs the graph on one image.

        Raises:
            InputError: the image cannot be read, or the numbers left the range of the bundle's precision.
        """
        loaded = read_image(image)
        pixels, crop = pixel_values(loaded.image, self._image)
        clock.lap("preprocess")
        outputs = self.run_graph({"pixel_values": pixels})
        check_finite(outputs["features"], "the vision tower", self._precision)
        clock.lap("vision")
        return VisionOutput(outputs, loaded.image.size, crop, loaded.warnings)

    def run_graph(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph alone: `pixel_values` [1, 3, H, W] to the features and signals, as they come."""
        return self._session.run(inputs)

    def patches(self, output: VisionOutput) -> np.ndarray:
        """[T, D]: the features without CLS."""
        return output.outputs["features"][0, -self._tokens :]


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
