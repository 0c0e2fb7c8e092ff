"""Seeded images, and the settings that CLIP's processor has for LLaVA-1.5."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from vtexport.bundle.manifest import Image as ImageSettings

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
SETTINGS = ImageSettings(
    processor="CLIPImageProcessor",
    resize_shortest=336,
    crop_height=336,
    crop_width=336,
    resample="bicubic",
    rescale=1 / 255,
    mean=MEAN,
    std=STD,
)


def random_array(width: int, height: int, channels: int = 3) -> np.ndarray:
    """[H, W, channels] uint8."""
    return np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_image(width: int, height: int) -> Image.Image:
    """RGB noise."""
    return Image.fromarray(random_array(width, height))


def transparent_image(width: int, height: int) -> Image.Image:
    """RGBA noise, with fully transparent and opaque pixels in it."""
    array = random_array(width, height, 4)
    array[: height // 3, :, 3] = 0
    array[-(height // 3) :, :, 3] = 255
    return Image.fromarray(array)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in a file of Pillow's format `kind`."""
    file = io.BytesIO()
    # Copies, because some of Pillow's writers leave settings behind that others trip over
    if "append_images" in options:
        options["append_images"] = [each.copy() for each in options["append_images"]]
    image.copy().save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
