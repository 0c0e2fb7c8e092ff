"""Distance of the pixels from the torchvision form of transformers' processors, which it prefers where it can."""

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
# Pillow 13 resizes images more than twice as high as wide in the other direction first. What a filter overshoots is cut
# at 0 and 255 in between, so that the order can be seen at sharp edges; in noise of black and white by up to 60 levels.
LEVELS_OF_TALL_PICTURES = 8
RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def images() -> list[Image.Image]:
    """Noise and photographs, none more than twice as high as wide."""
    photo = Image.open(PHOTO).convert("RGB")
    sharp = Image.fromarray((random_array(500, 700) > 127).astype(np.uint8) * np.uint8(255))
    sizes = ((600, 400), (301, 517), (336, 336), (337, 336), (1, 1), (2, 3), (700, 35), (1100, 900), (400, 800))
    return [
        *(random_image(*size) for size in sizes),
        *(photo, photo.resize((1400, 1000)), photo.resize((97, 133)), sharp),
    ]


def tall_pictures() -> list[Image.Image]:
    photo = Image.open(PHOTO).convert("RGB")
    return [photo.resize((400, 900)), photo.resize((700, 2000)), photo.crop((200, 0, 390, 400)).resize((800, 1700))]


def levels(pictures: list[Image.Image], resample: Any, border: list[int] | None) -> list[float]:
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor

    options = {"size": {"shortest_edge": 336}, "crop_size": 336, "resample": RESAMPLE[resample]}
    processor = LlavaImageProcessor(do_pad=True, **options) if border else CLIPImageProcessor(**options)
    settings = msgspec.structs.replace(SETTINGS, resample=resample, pad_to_square=border)
    others = [np.asarray(processor(image, return_tensors="np")["pixel_values"]) for image in pictures]
    ours = [pixel_values(image, settings)[0] for image in pictures]
    return [pixel_level_difference(one, other, settings) for one, other in zip(ours, others, strict=True)]


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("border", [None, [122, 116, 104]])
def test_difference_to_the_torchvision_form(resample: Any, border: list[int] | None) -> None:
    found = levels(images(), resample, border)
    assert max(found) <= LEVELS + 0.01, found
    assert max(found) > 0.5  # they do differ: this compares two forms


@pytest.mark.parametrize("resample", RESAMPLE)
def test_difference_of_tall_pictures(resample: Any) -> None:
    found = levels(tall_pictures(), resample, None)
    assert max(found) <= LEVELS_OF_TALL_PICTURES + 0.01, found
    assert max(levels(tall_pictures(), resample, [122, 116, 104])) <= LEVELS + 0.01
