"""A picture of what pruning kept: the image with its dropped patches dimmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vtexport.errors import InputError, UsageError, quoted
from vtexport.runtime.pipeline import VisualTokens

# Small images are drawn larger, so that a patch is some 20 pixels wide and its frame can be seen.
_SHORTEST_SIDE = 640
_DROPPED, _OUTSIDE = 0.42, 0.15  # brightness that is left
_FRAME = (255, 213, 0)


def draw_kept_tokens(image: Image.Image, visual: VisualTokens) -> Image.Image:
    """The upright RGB `image` that `visual` was made of, with kept patches bright and framed."""
    scale = max(1.0, _SHORTEST_SIDE / min(image.size))
    shown = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    rows, columns = visual.grid
    brightness = Image.new("F", shown.size, _OUTSIDE)
    paint = ImageDraw.Draw(brightness)
    kept = {int(index) for index in visual.keep_indices if index >= 0}
    boxes = {}
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        box = _box(visual, row, column, scale)
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


def _box(visual: VisualTokens, row: int, column: int, scale: float) -> tuple[int, int, int, int]:
    """A patch's corners in the scaled image: left, top, right, bottom, the last two included."""
    rows, columns = visual.grid
    crop = visual.crop
    left = (crop.left + crop.width * column / columns) * scale
    right = (crop.left + crop.width * (column + 1) / columns) * scale
    top = (crop.top + crop.height * row / rows) * scale
    bottom = (crop.top + crop.height * (row + 1) / rows) * scale
    return round(left), round(top), round(right) - 1, round(bottom) - 1
