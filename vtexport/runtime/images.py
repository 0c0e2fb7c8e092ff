"""From whatever a caller has (path, PIL image, array) to `pixel_values`, as the checkpoint's own processor does it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vtexport.bundle.manifest import Image as ImageSettings
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.runtime.image_files import read, upright
from vtexport.runtime.image_modes import MAX_PIXELS, from_array

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class LoadedImage:
    """An upright RGB image, with a sentence for everything in its file that was passed over."""

    image: Image.Image
    warnings: list[str]


@dataclass(frozen=True)
class Crop:
    """The part of the upright image that the model sees, in that image's pixels.

    It reaches beyond the image (`left` or `top` below 0) where the model sees a border around it.
    """

    left: float
    top: float
    width: float
    height: float


def load_image(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Image.Image:
    """An upright RGB image from a path, a PIL image or an array.

    EXIF orientation is applied, transparency is composited on white, and samples of 16 bits, or floating from 0 to 1,
    become 8 bits. A string may also be a `file:` or `data:` URL, and a path may begin with ~. Arrays are [H, W],
    [H, W, 1], [H, W, 3] or [H, W, 4], uint8, uint16, bool, or floating in 0 to 1.

    Raises:
        InputError: the file is missing, is no image in a format that is taken, is damaged, has samples whose range is
            not known, or more than `MAX_PIXELS` pixels.
        UsageError: the object is of another kind, or the array of another shape or type.
    """
    return read_image(image).image


def read_image(image: str | os.PathLike[str] | Image.Image | np.ndarray | LoadedImage) -> LoadedImage:
    """The same with warnings, such as that damaged metadata hide an orientation; what was read is taken as it is."""
    if isinstance(image, LoadedImage):
        return image
    if isinstance(image, (str, os.PathLike)):
        return LoadedImage(*read(os.fsdecode(image)))
    if isinstance(image, np.ndarray):
        return LoadedImage(from_array(image), [])
    if isinstance(image, Image.Image):
        return LoadedImage(*upright(image, "the image"))
    step = "; open them with PIL.Image.open(io.BytesIO(...))" if isinstance(image, (bytes, bytearray)) else ""
    raise UsageError(f"an image is a path, a PIL image or a NumPy array, not {type(image).__name__}{step}")


def pixel_values(image: Image.Image, settings: ImageSettings) -> tuple[np.ndarray, Crop]:
    """[1, 3, H, W] float32 of an upright RGB image, and the part of it that they show.

    Equal, bit for bit, to what the Pillow form of transformers' processor gives, in its order: border, resize, crop,
    rescaling, normalisation.

    Raises:
        InputError: with its border, or resized, the image would have more than `MAX_PIXELS` pixels.
        BundleError: `settings` are none that a processor has.
    """
    _check(settings)
    seen, offset_x, offset_y = _with_border(image, settings)
    wide, high = seen.size
    resized = _resized_size(seen, settings)
    seen = seen.resize(resized, _RESAMPLE[settings.resample])
    width, height = settings.crop_width or resized[0], settings.crop_height or resized[1]
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    if width * height > MAX_PIXELS:
        raise BundleError(f"the bundle's manifest has a crop of {width} x {height} pixels; build or copy it again")
    if (width, height) != resized:
        seen = seen.crop((left, top, left + width, top + height))  # black where there is no image
    x, y = wide / resized[0], high / resized[1]
    crop = Crop(left * x - offset_x, top * y - offset_y, width * x, height * y)
    return normalised(np.asarray(seen), settings), crop


def normalised(levels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """[1, 3, H, W] float32 of levels [H, W, 3] uint8 that are resized and cropped already: the last two steps."""
    planes = _normalisation_table(settings)[np.arange(3), levels]  # [H, W, 3]
    return np.ascontiguousarray(planes.transpose(2, 0, 1))[None]


def output_size(settings: ImageSettings) -> tuple[int, int]:
    """Height and width of `pixel_values`, the same for every image.

    Raises:
        BundleError: they depend on the image, or `settings` are none that a processor has.
    """
    _check(settings)
    if settings.crop_height and settings.crop_width:
        return settings.crop_height, settings.crop_width
    if settings.resize_height and settings.resize_width:
        return settings.resize_height, settings.resize_width
    if settings.pad_to_square and settings.resize_shortest:
        return settings.resize_shortest, settings.resize_shortest
    raise BundleError(
        "the bundle's manifest has images keep sizes of their own, and its vision graph takes one size; "
        "build the bundle again"
    )


def pixel_level_difference(one: np.ndarray, other: np.ndarray, settings: ImageSettings) -> float:
    """The largest difference between two `pixel_values` in levels of 8 bits, before rescaling and normalisation."""
    std = np.asarray(settings.std, np.float64)[:, None, None]
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float((difference * std / settings.rescale).max())


def _check(settings: ImageSettings) -> None:
    """Refuses a manifest that nobody built, before it decides how much memory is taken."""
    resize = (settings.resize_height, settings.resize_width)
    crop = (settings.crop_height, settings.crop_width)
    numbers = [settings.rescale, *settings.mean, *settings.std]
    wrong = None
    if (None in resize and any(resize)) or (None in crop and any(crop)) or (any(resize) and settings.resize_shortest):
        wrong = "a resize or a crop that does not fit together"
    elif (settings.resize_shortest or 1) ** 2 > MAX_PIXELS or (resize[0] or 1) * (resize[1] or 1) > MAX_PIXELS:
        wrong = f"images resized to more than {MAX_PIXELS:,} pixels"
    elif settings.pad_to_square and not all(0 <= level <= 255 for level in settings.pad_to_square):
        wrong = f"the border colour {settings.pad_to_square}, which is not within 0 to 255"
    elif not np.isfinite(numbers).all() or 0 in settings.std or settings.rescale == 0:
        wrong = "a normalisation that gives no numbers"
    if wrong:
        raise BundleError(f"the bundle's manifest has {wrong}; build or copy the bundle again")


def _with_border(image: Image.Image, settings: ImageSettings) -> tuple[Image.Image, int, int]:
    """The image in the middle of a square of the manifest's colour, and where it begins there."""
    side = max(image.size)
    if settings.pad_to_square is None or image.width == image.height:
        return image, 0, 0
    if side * side > MAX_PIXELS:
        raise InputError(
            f"the image has {image.width} x {image.height} pixels, too many for the square border that this model's "
            "images get; scale it down or crop it first"
        )
    red, green, blue = settings.pad_to_square
    square = Image.new("RGB", (side, side), (red, green, blue))
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square.paste(image, (left, top))
    return square, left, top


def _resized_size(image: Image.Image, settings: ImageSettings) -> tuple[int, int]:
    """Width and height after the resize."""
    width, height = image.size
    if settings.resize_height and settings.resize_width:
        return settings.resize_width, settings.resize_height
    short = settings.resize_shortest
    if short is None:
        return width, height
    resized = (short, int(height * short / width)) if width < height else (int(width * short / height), short)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise InputError(
            f"the image has {width} x {height} pixels, too narrow to bring its shorter side to {short}; crop it first"
        )
    return resized


def _normalisation_table(settings: ImageSettings) -> Any:
    """[3, 256] float32: what each 8-bit value of each channel becomes; scaled in float64, normalised in float32."""
    scaled = (np.arange(256, dtype=np.float64) * settings.rescale).astype(np.float32)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    return (scaled[None] - mean[:, None]) / std[:, None]
