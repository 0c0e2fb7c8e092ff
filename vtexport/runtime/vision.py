"""The vision stage: preprocessing of an image and the vision graph."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtexport.backends.base import Backend, Buffer
from vtexport.bundle.reader import Bundle
from vtexport.bundle.views import Arrangement, FixedSize, View
from vtexport.errors import BundleError, InputError
from vtexport.runtime.images import Crop, LoadedImage, output_size, pixel_values, read_image

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True)
class Preprocessed:
    """One image as the vision graph takes it.

    Attributes:
        pixel_values: [1, 3, H, W] float32, on the host.
        image_size: Width and height of the upright image, pixels.
        crop: The part of it that they are of.
        warnings: What was passed over in its file.
    """

    pixel_values: np.ndarray
    image_size: tuple[int, int]
    crop: Crop
    warnings: list[str]


@dataclass(frozen=True)
class VisionOutput:
    """One image after the vision graph.

    Attributes:
        outputs: `features` and the signals by name.
        image: It before the graph.
    """

    outputs: dict[str, Buffer]
    image: Preprocessed


class VisionStage:
    """One vision graph of a bundle, loaded, with the view that an image becomes and the arrangement that it is in."""

    def __init__(self, bundle: Bundle, graph: str, backend: Backend):
        manifest = bundle.manifest
        self._image, self._precision = manifest.image, manifest.precision
        self.arrangement, self.view = _only_view(bundle)
        self._backend = backend
        self.session = backend.load(bundle.path(manifest.graphs[graph].file))
        self.session.check_input("pixel_values", 3, *output_size(manifest.image))

    def preprocess(self, image: ImageLike | LoadedImage) -> Preprocessed:
        """Reads one image, unless it was read, and makes the checkpoint's pixels of it.

        Raises:
            InputError: the image cannot be read.
        """
        loaded = image if isinstance(image, LoadedImage) else read_image(image)
        pixels, crop = pixel_values(loaded.image, self._image)
        return Preprocessed(pixels, loaded.image.size, crop, loaded.warnings)

    def run(self, image: Preprocessed) -> VisionOutput:
        """Runs the graph on one image.

        Raises:
            InputError: the numbers left the range of the bundle's precision.
        """
        outputs = self.session.run({"pixel_values": self._backend.upload(image.pixel_values)})
        check_finite(self._backend.is_finite(outputs["features"]), "the vision tower", self._precision)
        return VisionOutput(outputs, image)

    def patches(self, output: VisionOutput) -> np.ndarray:
        """[T, D]: the features without CLS, for the host."""
        return output.outputs["features"].numpy()[0, -self.arrangement.tokens :]


def _only_view(bundle: Bundle) -> tuple[Arrangement, View]:
    """The one view that an image becomes.

    Raises:
        BundleError: the bundle cuts images in a way that this runtime does not.
    """
    vision = bundle.manifest.vision
    arrangement = vision.arrangements[0]
    if vision.resize != FixedSize() or len(arrangement.views) > 1 or vision.separators:
        raise BundleError(
            f"{bundle.folder} has images of several sizes or views (rule {vision.resize.__struct_config__.tag!r}), and "
            "this vtexport runs one view of one size; run pip install --upgrade vtexport"
        )
    return arrangement, arrangement.views[0]


def check_finite(finite: bool, stage: str, precision: str) -> None:
    """Stops where a stage left the range of numbers: what follows would be noise that looks like an answer.

    Raises:
        InputError: `finite` is False.
    """
    if not finite:
        advice = (
            "build the bundle with --precision fp32" if precision == "float16" else "check the checkpoint's weights"
        )
        raise InputError(f"{stage} gave values beyond the range of {precision} for this input; {advice}")
