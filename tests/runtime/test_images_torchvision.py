"""How far the pixels may be from the torchvision form of transformers' processors, which it prefers where it can."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from made_up_images import SETTINGS, random_array, random_image
from PIL import Image
from tiny_llava import PHOTO

from vtexport.runtime.images import pixel_level_difference, pixel_values

pytest.importorskip("torchvision", reason="torchvision is not installed, so there is no other form to compare with")

# Its resize rounds between the passes and at the end in other places, and it adds its own border. With `nearest` it
# picks other pixels, so that there is no bound.
LEVELS = 2
RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def images() -> list[Image.Image]:
    photo = Image.open(PHOTO).convert("RGB")
    sharp = Image.fromarray((random_array(500, 700) > 127).astype(np.uint8) * np.uint8(255))
    sizes = ((600, 400), (301, 517), (336, 336), (337, 336), (1, 1), (2, 3), (35, 700), (1100, 900))
    return [
        *(random_image(*size) for size in sizes),
        *(photo, photo.resize((1400, 1000)), photo.resize((97, 133)), sharp),
    ]


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("border", [None, [122, 116, 104]])
def test_difference_to_the_torchvision_form(resample: Any, border: list[int] | None) -> None:
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor

    options = {"size": {"shortest_edge": 336}, "crop_size": 336, "resample": RESAMPLE[resample]}
    processor = LlavaImageProcessor(do_pad=True, **options) if border else CLIPImageProcessor(**options)
    settings = msgspec.structs.replace(SETTINGS, resample=resample, pad_to_square=border)
    levels = []
    for image in images():
        other = np.asarray(processor(image, return_tensors="np")["pixel_values"])
        levels.append(pixel_level_difference(pixel_values(image, settings)[0], other, settings))
    assert max(levels) <= LEVELS + 0.01, levels
    assert max(levels) > 0.5  # they do differ: this compares two forms
