"""The pictures of a proof: those that the user gives, those of an earlier proof, or two that are generated."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from vtexport.errors import InputError, UsageError, printable, quoted
from vtexport.processing.self_check import on_white
from vtexport.proof.pictures import pictures

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel
_MOST_BYTES = 16 * 2**20  # of a PNG


@dataclass(frozen=True)
class Picture:
    """One picture of a proof: upright RGB, with the PNG that a device reads it from."""

    image: Image.Image
    origin: str
    png: bytes


def generated() -> list[Picture]:
    """The two that are drawn here."""
    return [_picture(image, origin) for origin, image in pictures().items()]


def given(paths: Sequence[str | Path]) -> list[Picture]:
    """The user's own, upright, on white where they are transparent.

    Raises:
        InputError: a file cannot be read.
        UsageError: it has samples of more than 8 bits, or is too large.
    """
    return [_picture(_read(Path(path)), printable(Path(path).name)) for path in paths]


def stored(files: Sequence[tuple[Path, str]]) -> list[Picture]:
    """Those of an earlier proof, as paths with their origins."""
    return [Picture(_read(path), origin, path.read_bytes()) for path, origin in files]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            if opened.mode not in _MODES:
                raise UsageError(
                    f"{path} has samples in mode {opened.mode}; convert it to 8 bits a channel before it enters a proof"
                )
            return on_white(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({quoted(error, path)}); give another --image") from error


def _picture(image: Image.Image, origin: str) -> Picture:
    file = io.BytesIO()
    image.save(file, "PNG")
    if file.tell() > _MOST_BYTES:
        raise UsageError(f"{origin} takes {file.tell() / 1e6:.0f} MB as PNG; give an image of at most 16 MB")
    return Picture(image, origin, file.getvalue())
