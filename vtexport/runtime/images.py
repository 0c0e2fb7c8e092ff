"""From whatever a caller has (path, PIL image, array) to `pixel_values`, as the checkpoint's own processor does it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtexport.bundle.manifest import Image as ImageSettings
from vtexport.errors import InputError, UsageError, quoted

# As many pixels as Pillow decodes without a warning. A larger picture holds nothing that survives the resize to a few
# hundred pixels, and decoding it can exhaust a device's memory.
MAX_PIXELS = 89_478_485
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Crop:
    """The part of the upright image that the model sees, in that image's pixels."""

    left: float
    top: float
    width: float
    height: float


def load_image(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Image.Image:
    """An upright RGB image from a path, a PIL image or an array.

    EXIF orientation is applied; grey, palette, RGBA and 16-bit images become 8-bit RGB, transparency is dropped as
    transformers' processors do. Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8 in 0..255 or floating in
    0..1.

    Raises:
        InputError: the file is missing, is no image, is cut short, or has more than `MAX_PIXELS` pixels.
        UsageError: the object is of another kind.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(Path(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _to_rgb(image, "the image")
    raise UsageError(f"an image is a path, a PIL image or a NumPy array, not {type(image).__name__}")


def _from_file(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked in _to_rgb
            with Image.open(path) as opened:
                return _to_rgb(opened, str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the path of an image") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; give the path of an image") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image that Pillow reads; give a JPEG, PNG, WebP, BMP or TIFF file"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large: {quoted(error, path)}; scale the image down first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path} cannot be decoded ({quoted(error, path)}); the file is damaged or cut short"
        ) from error


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{where} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are taken; "
            "scale the image down first"
        )
    if width < 1 or height < 1:
        raise InputError(f"{where} has {width} x {height} pixels; give an image with at least one")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I;16", "I")):
        # Pillow's own conversion clips 16-bit values at 255: scale them instead
        values = np.asarray(upright).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise UsageError(f"an image array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {list(shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UsageError("a floating image array holds values from 0 to 1; this one does not")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UsageError(f"an image array is uint8 or floating, not {array.dtype}")
    array = array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the image array")


def pixel_values(image: Image.Image, settings: ImageSettings) -> tuple[np.ndarray, Crop]:
    """[1, 3, H, W] float32 and the part of `image` it shows.

    Equal, bit for bit, to transformers' CLIP processor without torchvision.

    Raises:
        InputError: the image is so narrow that its resized form would have more than `MAX_PIXELS` pixels.
    """
    width, height = image.size
    short = settings.resize_shortest
    crop_height, crop_width = output_size(settings)
    assert short is not None
    upright = width < height
    resized = (short, int(height * short / width)) if upright else (int(width * short / height), short)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise InputError(
            f"the image has {width} x {height} pixels, too narrow to bring its shorter side to {short}; crop it first"
        )
    left, top = (resized[0] - crop_width) // 2, (resized[1] - crop_height) // 2
    box = (left, top, left + crop_width, top + crop_height)
    seen = np.asarray(image.resize(resized, _RESAMPLE[settings.resample]).crop(box))
    planes = _normalisation_table(settings)[np.arange(3), seen]  # [H, W, 3]
    scale_x, scale_y = width / resized[0], height / resized[1]
    crop = Crop(left * scale_x, top * scale_y, crop_width * scale_x, crop_height * scale_y)
    return np.ascontiguousarray(planes.transpose(2, 0, 1))[None], crop


def output_size(settings: ImageSettings) -> tuple[int, int]:
    """Height and width of `pixel_values`."""
    assert settings.crop_height is not None
    assert settings.crop_width is not None
    return settings.crop_height, settings.crop_width


def _normalisation_table(settings: ImageSettings) -> Any:
    """[3, 256] float32: what each 8-bit value of each channel becomes; scaled in float64, normalised in float32."""
    scaled = (np.arange(256, dtype=np.float64) * settings.rescale).astype(np.float32)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    return (scaled[None] - mean[:, None]) / std[:, None]
