"""Pixels of every mode and array type as 8-bit RGB, transparency composited on white."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vtexport.errors import InputError, UsageError

# As many pixels as Pillow decodes without a warning. A larger picture holds nothing that survives the resize to a few
# hundred pixels, and decoding it can exhaust a device's memory.
MAX_PIXELS = 89_478_485
_WHITE = (255, 255, 255, 255)
_BLOCK = 2**20  # samples that are converted at once, so that wide intermediate values need little memory
_UNPREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def check_size(width: int, height: int, where: str, most: int = MAX_PIXELS) -> None:
    """Refuses an image before memory is taken for its pixels.

    Raises:
        InputError: it has none, or more than `most`.
    """
    if width * height > most:
        raise InputError(
            f"{where} has {width} x {height} pixels, more than the {most:,} that are taken; scale the image down first"
        )
    if width < 1 or height < 1:
        raise InputError(f"{where} has {width} x {height} pixels; give an image with at least one")


def to_rgb(image: Image.Image, where: str, *, bits: int | None, transparency: Any) -> Image.Image:
    """An image of any mode in 8-bit RGB, as transformers' `convert_to_rgb` makes it, without metadata.

    Unlike there, 16-bit samples are scaled by their range (there they are clipped at 255), floating ones by 0 to 1,
    premultiplied alpha and the alpha of palettes are composited too, and the A of LAB is not taken for alpha.

    Args:
        image: loaded.
        where: names the image in errors.
        bits: how many bits of a sample its file uses, where that is known and the mode has more than 8.
        transparency: what Pillow calls `info["transparency"]`: a grey value, colour or index of the palette that is
            transparent, or the alpha of each index as bytes.

    Raises:
        InputError: the samples are wider than 8 bits and their range cannot be told.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _wide_grey(np.asarray(image), image.mode, where, bits)
        if isinstance(transparency, int):
            grey[np.asarray(image) == transparency] = 255
        rgb = Image.fromarray(grey).convert("RGB")
    else:
        if not isinstance(transparency, (int, bytes, tuple)):
            transparency = None  # not Pillow's: the text of a PNG file may have any key
        if transparency != image.info.get("transparency"):
            image = image.copy()
            image.info.pop("transparency")
            image.info |= {} if transparency is None else {"transparency": transparency}
        rgb = _on_white(image) if _has_alpha(image) else image.convert("RGB")
    rgb.info = {}
    return rgb


def _has_alpha(image: Image.Image) -> bool:
    palette: Any = image.palette
    return (
        image.mode in {"LA", "PA", "RGBA", *_UNPREMULTIPLIED}
        or image.info.get("transparency") is not None
        or (image.mode == "P" and palette is not None and palette.mode.endswith("A"))
    )


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _UNPREMULTIPLIED:
        image = image.convert(_UNPREMULTIPLIED[image.mode])
    # What Pillow calls transparency of a CMYK image, say, has no meaning and leaves it opaque
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image.convert("RGBA")).convert("RGB")


def _wide_grey(values: np.ndarray, mode: str, where: str, bits: int | None) -> np.ndarray:
    """[H, W] uint8 of samples that are wider.

    Mode I has 32 bits and holds 16-bit samples in some files and versions of Pillow. Values up to 255 are taken as
    they are, as transformers does, unless the file says otherwise; greater ones up to 65535 as 16 bits.
    """
    low, high = values.min(), values.max()
    if mode == "F":
        if not (low >= 0 and high <= 1):  # also where one is no number
            raise InputError(
                f"{where} has floating samples {_range(low, high)}, and only 0 to 1 has a known meaning; "
                "scale them to 0 to 255 and save them in 8 bits"
            )
        top = 1
    elif mode == "I" and bits is None:
        if not (low >= 0 and high <= 65535):
            raise InputError(
                f"{where} has 32-bit samples from {low} to {high}, and only 0 to 65535 has a known meaning; "
                "scale them to 0 to 255 and save them in 8 bits"
            )
        top = 255 if high <= 255 else 65535
    else:
        top = 2 ** (bits or 16) - 1
    return _eight_bits(values, top)


def _range(low: float, high: float) -> str:
    return f"from {low:.6g} to {high:.6g}" if np.isfinite([low, high]).all() else "that are not finite"


def _eight_bits(values: np.ndarray, top: float) -> np.ndarray:
    """[H, ...] uint8 of values from 0 to `top`, rounded."""
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK * len(values) // values.size)
    for start in range(0, len(values), rows):
        scaled = values[start : start + rows].astype(np.float64) * 255 / top
        out[start : start + rows] = np.rint(np.minimum(scaled, 255))
    return out


def from_array(array: np.ndarray) -> Image.Image:
    """An RGB image of [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, uint16, bool, or floating in 0 to 1.

    Four channels are composited on white by the arithmetic of transformers' `convert_to_rgb` for arrays, before
    floating values and uint16 are brought to 8 bits.

    Raises:
        InputError: it has more than `MAX_PIXELS` pixels.
        UsageError: its shape, type or values are others.
    """
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise UsageError(
            f"an image array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {list(shape)}; "
            "bring its channels into the last place"
        )
    check_size(shape[1], shape[0], "the image array")
    array = np.asarray(array)  # of a subclass such as a masked array
    floating = np.issubdtype(array.dtype, np.floating)
    if floating:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also where one is no number
            raise UsageError(
                f"a floating image array holds values from 0 to 1, and this one has values {_range(low, high)}; "
                "scale it, or give uint8 from 0 to 255"
            )
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(
            f"an image array is uint8, uint16, bool or floating, not {array.dtype}; "
            "convert it, with .astype('uint8') where it holds 0 to 255"
        )
    top = 1 if floating else int(np.iinfo(array.dtype).max)
    array = array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array
    if array.ndim == 3 and shape[2] == 4:
        array = _composited(array, top)
    array = array if array.dtype == np.uint8 else _eight_bits(array, top)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _composited(array: np.ndarray, white: int) -> np.ndarray:
    """[H, W, 3] of [H, W, 4], in its own type."""
    out = np.empty((*array.shape[:2], 3), array.dtype)
    rows = max(1, _BLOCK // array.shape[1])
    scale: float = white if white > 1 else 1.0
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        alpha = block[..., 3:] / scale
        over = alpha * block[..., :3] + (1 - alpha) * scale
        out[start : start + rows] = np.round(over) if white > 1 else over
    return out
