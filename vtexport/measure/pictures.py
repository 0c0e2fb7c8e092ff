"""Pictures that are measured on: files, folders, or made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vtexport.errors import InputError, VtexportError, printable
from vtexport.measure.record import Failure
from vtexport.runtime.images import load_image
from vtexport.runtime.vision import ImageLike

WIDTH, HEIGHT = 640, 480
SYNTHETIC = 8  # pictures of a measurement that is given none
SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
}


@dataclass(frozen=True)
class Pictures:
    """Pictures with their names; `failures` are those that cannot be read."""

    names: list[str]
    images: list[ImageLike]
    synthetic: bool
    failures: list[Failure] = field(default_factory=list)


def pictures(given: Sequence[str | Path], seed: int) -> Pictures:
    """The pictures of files and folders, each read once to see that it can be; without any, synthetic ones.

    A file is given to the pipeline as its path, so that every answer reads and decodes it. In a folder everything
    counts whose name ends as an image's does, in the order of the names; folders in it are not entered.

    Raises:
        InputError: there is no such file or folder, or not one image that can be read.
    """
    if not given:
        names = [f"synthetic {WIDTH} x {HEIGHT}, seed {seed + number}" for number in range(SYNTHETIC)]
        return Pictures(names, [synthetic(seed + number) for number in range(SYNTHETIC)], synthetic=True)
    files: list[Path] = []
    for each in map(Path, given):
        found = _in_folder(each) if each.is_dir() else [each]
        if not found:
            raise InputError(f"{each} holds no image ({', '.join(sorted(SUFFIXES))}); give another --image")
        files += found
    good, failures = [], []
    for file in files:
        try:
            load_image(file)
            good.append(file)
        except VtexportError as error:
            if len(files) == 1:
                raise
            failures.append(Failure(image=printable(file), reason=printable(error), at_s=0.0))
    if not good:
        raise InputError(f"none of {len(files)} images can be read (the first: {failures[0].reason}); give others")
    return Pictures([printable(file) for file in good], list(good), synthetic=False, failures=failures)


def _in_folder(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); give another --image") from error


def synthetic(seed: int) -> Image.Image:
    """A picture (RGB, 640 x 480) of the seed: twelve rectangles of one colour each on a gradient, with some noise."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 255, (2, 2, 3))
    x, y = np.linspace(0, 1, WIDTH)[None, :, None], np.linspace(0, 1, HEIGHT)[:, None, None]
    top, bottom = (corners[side, 0] * (1 - x) + corners[side, 1] * x for side in (0, 1))
    picture = top * (1 - y) + bottom * y
    for _ in range(12):
        left, upper = random.integers(0, WIDTH - 40), random.integers(0, HEIGHT - 40)
        width, height = random.integers(20, 240, 2)
        picture[upper : upper + height, left : left + width] = random.uniform(0, 255, 3)
    picture += random.normal(0, 6, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
