"""A picture of what pruning kept: the image with its dropped patches dimmed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vtexport.errors import InputError, UsageError, quoted
from vtexport.runtime.images import Crop
from vtexport.runtime.pipeline import VisualTokens

# Small images are drawn larger, so that a patch is some 20 pixels wide and its frame can be seen, but narrow ones not
# without end.
_SHORTEST_SIDE, _MOST_PIXELS = 640, 2**25
_DROPPED, _OUTSIDE = 0.42, 0.15  # brightness that is left
_FRAME = (255, 213, 0)
_EXACT = 1e-3  # of a pixel: what a crop's numbers lack to whole ones is rounding


def draw_kept_tokens(image: Image.Image, visual: VisualTokens, border: Sequence[int] = (0, 0, 0)) -> Image.Image:
    """The upright RGB `image` that `visual` was made of, with kept patches bright and framed.

    Where the model saw more than the image, because a border makes it square, the picture shows it too, in the colour
    `border`.
    """
    return draw_kept_patches(image, visual.crop, visual.grid, visual.keep_indices.tolist(), border)


def draw_kept_patches(
    image: Image.Image,
    crop: Crop,
    grid: tuple[int, int],
    keep_indices: Iterable[int],
    border: Sequence[int] = (0, 0, 0),
) -> Image.Image:
    """The same of kept patches that are known without a run: `grid` is rows and columns, an index below 0 no patch."""
    left, top = min(0, math.floor(crop.left + _EXACT)), min(0, math.floor(crop.top + _EXACT))
    width = max(image.width, math.ceil(crop.left + crop.width - _EXACT)) - left
    height = max(image.height, math.ceil(crop.top + crop.height - _EXACT)) - top
    scale = max(1.0, _SHORTEST_SIDE / min(width, height))
    scale = min(scale, math.sqrt(_MOST_PIXELS / (width * height)))

    def scaled(length: float) -> int:
        return max(1, round(length * scale))

    red, green, blue = border
    shown = Image.new("RGB", (scaled(width), scaled(height)), (red, green, blue))
    enlarged = image.resize((scaled(image.width), scaled(image.height)), Image.Resampling.LANCZOS)
    shown.paste(enlarged, (round(-left * scale), round(-top * scale)))
    rows, columns = grid
    brightness = Image.new("F", shown.size, _OUTSIDE)
    paint = ImageDraw.Draw(brightness)
    kept = {index for index in keep_indices if index >= 0}
    boxes = {}
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        box = _box(crop, grid, row, column, left, top, scale)
        boxes[index] = box
        paint.rectangle(box, fill=1.0 if index in kept else _DROPPED)
    dimmed = np.asarray(shown, np.float32) * np.asarray(brightness)[:, :, None]
    picture = Image.fromarray(dimmed.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for index in sorted(kept):
        pen.rectangle(boxes[index], outline=_FRAME)
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes the picture.

    Raises:
        UsageError: the name's ending is no image format.
        InputError: the file cannot be written.
    """
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise UsageError(f"{path} has no image ending; name the output .png, .jpg or .webp")
    try:
        picture.save(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({quoted(error.strerror or error, path)}); choose another -o/--output"
        ) from error


def _box(
    crop: Crop, grid: tuple[int, int], row: int, column: int, origin_x: int, origin_y: int, scale: float
) -> tuple[int, int, int, int]:
    """A patch's corners in the picture: left, top, right, bottom, the last two included."""
    rows, columns = grid
    left = round((crop.left + crop.width * column / columns - origin_x) * scale)
    right = round((crop.left + crop.width * (column + 1) / columns - origin_x) * scale)
    top = round((crop.top + crop.height * row / rows - origin_y) * scale)
    bottom = round((crop.top + crop.height * (row + 1) / rows - origin_y) * scale)
    return left, top, max(left, right - 1), max(top, bottom - 1)
