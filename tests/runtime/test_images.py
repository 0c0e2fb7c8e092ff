"""`pixel_values` equal those of transformers' processors, for every step and without it; and say what they show."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_images import MEAN, SETTINGS, STD, random_image
from PIL import Image

from vtexport.bundle.manifest import Image as ImageSettings
from vtexport.errors import BundleError, InputError
from vtexport.runtime.images import Crop, output_size, pixel_level_difference, pixel_values

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def replaced(**changes: Any) -> ImageSettings:
    return msgspec.structs.replace(SETTINGS, **changes)


def transformers_pixels(image: Image.Image, name: str = "CLIP", **settings: Any) -> np.ndarray:
    """[1, 3, H, W] of the Pillow form of transformers' processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    kinds = {"CLIP": CLIPImageProcessorPil, "Llava": LlavaImageProcessorPil, "Siglip": SiglipImageProcessorPil}
    return np.asarray(kinds[name](**settings)(image, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize(
    "size", [(600, 400), (301, 517), (336, 336), (337, 336), (1, 1), (35, 700), (1000, 20), (2, 3)]
)
@pytest.mark.parametrize("name", ["CLIP", "Llava"])
def test_pixels_equal_transformers_bit_for_bit(size: tuple[int, int], name: str) -> None:
    image = random_image(*size)
    border = {"do_pad": True} if name == "Llava" else {}
    pixels, _ = pixel_values(image, replaced(pad_to_square=[122, 116, 104]) if border else SETTINGS)
    assert pixels.dtype == np.float32
    expected = transformers_pixels(image, name, size={"shortest_edge": 336}, crop_size=336, **border)
    np.testing.assert_array_equal(pixels, expected)


SIDE = st.integers(1, 60) | st.sampled_from([1, 2, 3, 300])
TARGET = st.integers(1, 50)


@st.composite
def steps(draw: st.DrawFn) -> tuple[ImageSettings, dict[str, Any]]:
    """Steps as a manifest has them, and the same for transformers' processor: each step may be left out."""
    resample = draw(st.sampled_from(sorted(RESAMPLE)))
    mean, std = [draw(st.sampled_from([[0.5, 0.4, 0.3], MEAN])), draw(st.sampled_from([[0.5, 0.25, 1.0], STD]))]
    pad, rescale, normalize, crop = (draw(st.booleans()) for _ in range(4))
    resize = draw(st.sampled_from(["none", "shortest", "exact"]))
    height, width = draw(TARGET), draw(TARGET)
    crop_height, crop_width = draw(TARGET), draw(TARGET)
    manifest = ImageSettings(
        processor="LlavaImageProcessor",
        pad_to_square=[int(level * 255) for level in mean] if pad else None,
        resize_shortest=height if resize == "shortest" else None,
        resize_height=height if resize == "exact" else None,
        resize_width=width if resize == "exact" else None,
        resample=resample,
        crop_height=crop_height if crop else None,
        crop_width=crop_width if crop else None,
        rescale=1 / 255 if rescale else 1.0,
        mean=mean if normalize else [0.0] * 3,
        std=std if normalize else [1.0] * 3,
    )
    size = {"shortest_edge": height} if resize == "shortest" else {"height": height, "width": width}
    options = {
        "do_pad": pad, "do_resize": resize != "none", "size": size, "resample": RESAMPLE[resample],
        "do_center_crop": crop, "crop_size": {"height": crop_height, "width": crop_width},
        "do_rescale": rescale, "do_normalize": normalize, "image_mean": mean, "image_std": std,
    }  # fmt: skip
    return manifest, options


@settings(max_examples=150, deadline=None)
@given(steps(), SIDE, SIDE)
def test_every_combination_of_steps_equals_transformers(
    chosen: tuple[ImageSettings, dict[str, Any]], width: int, height: int
) -> None:
    manifest, options = chosen
    image = random_image(width, height)
    pixels, _ = pixel_values(image, manifest)
    np.testing.assert_array_equal(pixels, transformers_pixels(image, "Llava", **options))
    try:
        size = output_size(manifest)
    except BundleError:
        return
    assert pixels.shape[2:] == size


def test_siglip() -> None:
    for size in ((50, 40), (40, 50), (1, 1), (3, 200)):
        image = random_image(*size)
        manifest = ImageSettings(
            processor="SiglipImageProcessor", resize_height=32, resize_width=24, resample="bicubic",
            rescale=1 / 255, mean=[0.5] * 3, std=[0.5] * 3,
        )  # fmt: skip
        expected = transformers_pixels(image, "Siglip", size={"height": 32, "width": 24})
        np.testing.assert_array_equal(pixel_values(image, manifest)[0], expected)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (336, 336)),
        ({"crop_height": 20, "crop_width": 30}, (20, 30)),
        ({"crop_height": None, "crop_width": None, "pad_to_square": [0, 0, 0]}, (336, 336)),
        ({"resize_shortest": None, "resize_height": 8, "resize_width": 9}, (336, 336)),
        (
            {"resize_shortest": None, "resize_height": 8, "resize_width": 9, "crop_height": None, "crop_width": None},
            (8, 9),
        ),
    ],
)
def test_output_size(changes: dict[str, Any], size: tuple[int, int]) -> None:
    assert output_size(replaced(**changes)) == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_height": None, "crop_width": None}, "sizes of their own.*build the bundle again"),
        ({"crop_height": None, "crop_width": None, "resize_shortest": None}, "sizes of their own"),
        ({"crop_height": None}, "does not fit together"),
        ({"resize_height": 9}, "does not fit together"),
        ({"resize_height": 9, "resize_width": 9}, "does not fit together"),
        ({"resize_shortest": 2**40}, "resized to more than"),
        ({"resize_shortest": None, "resize_height": 2**40, "resize_width": 1}, "resized to more than"),
        ({"pad_to_square": [0, 0, 256]}, r"border colour \[0, 0, 256\]"),
        ({"std": [0.0, 1.0, 1.0]}, "gives no numbers"),
        ({"mean": [float("nan"), 1.0, 1.0]}, "gives no numbers"),
    ],
)
def test_settings_that_no_processor_has(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        output_size(replaced(**changes))


def test_a_crop_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(BundleError, match="crop of 1048576 x 1048576 pixels"):
        pixel_values(random_image(4, 4), replaced(crop_height=2**20, crop_width=2**20))


def crop_of(size: tuple[int, int], **changes: Any) -> Crop:
    return pixel_values(random_image(*size), replaced(**changes))[1]


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((600, 400), {}, (100, 0, 400, 400)),
        ((300, 900), {}, (0, 300, 300, 300)),
        ((600, 400), {"pad_to_square": [1, 2, 3]}, (0, -100, 600, 600)),
        ((300, 900), {"pad_to_square": [1, 2, 3]}, (-300, 0, 900, 900)),
        ((300, 900), {"pad_to_square": [1, 2, 3], "crop_height": 168, "crop_width": 168}, (-75, 225, 450, 450)),
        (
            (600, 400),
            {"resize_shortest": None, "resize_height": 336, "resize_width": 336, "crop_height": None,
             "crop_width": None},
            (0, 0, 600, 400),
        ),
        ((300, 200), {"resize_shortest": None}, (-18, -68, 336, 336)),
    ],
)  # fmt: skip
def test_crop_says_what_the_model_sees(
    size: tuple[int, int], changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    crop = crop_of(size, **changes)
    assert (crop.left, crop.top, crop.width, crop.height) == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("changes", [{}, {"pad_to_square": [0, 0, 0]}, {"resize_shortest": None}])
def test_the_crop_is_where_the_pixels_come_from(changes: dict[str, Any]) -> None:
    """A white spot in the image is found in the pixels where the crop has it."""
    image = Image.new("RGB", (500, 300))
    image.paste((255, 255, 255), (240, 190, 260, 210))
    pixels, crop = pixel_values(image, replaced(rescale=1.0, mean=[0.0] * 3, std=[1.0] * 3, **changes))
    rows, columns = np.nonzero(pixels[0, 0] > 127)
    x = crop.left + crop.width * (columns.mean() + 0.5) / 336
    y = crop.top + crop.height * (rows.mean() + 0.5) / 336
    assert (x, y) == pytest.approx((250, 200), abs=1.5)


def test_images_that_would_fill_the_memory_are_refused_before_they_do() -> None:
    with pytest.raises(InputError, match=r"too narrow.*crop it first"):
        pixel_values(Image.new("RGB", (1, 10_000)), SETTINGS)
    with pytest.raises(InputError, match=r"1 x 80000000 pixels, too many for the square border.*scale it down"):
        pixel_values(Image.new("RGB", (1, 80_000_000)), replaced(pad_to_square=[0, 0, 0]))


def test_difference_in_levels() -> None:
    one = random_image(336, 336)
    moved = np.asarray(one).astype(int) + np.array([3, 0, 0])
    other = Image.fromarray(np.minimum(moved, 255).astype(np.uint8))
    pixels = [pixel_values(image, SETTINGS)[0] for image in (one, other)]
    assert pixel_level_difference(pixels[0], pixels[1], SETTINGS) == pytest.approx(3, abs=1e-4)
    assert pixel_level_difference(pixels[0], pixels[0], SETTINGS) == 0
