"""Images of every kind a camera or a person hands over, right or refused in one sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from vtexport.bundle.manifest import Image as ImageSettings
from vtexport.errors import InputError, UsageError
from vtexport.runtime.images import load_image, pixel_values

SETTINGS = ImageSettings(
    processor="CLIPImageProcessor",
    resize_shortest=336,
    crop_height=336,
    crop_width=336,
    resample="bicubic",
    rescale=1 / 255,
    mean=[0.48145466, 0.4578275, 0.40821073],
    std=[0.26862954, 0.26130258, 0.27577711],
)


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transformers_pixels(image: Image.Image, **settings: Any) -> np.ndarray:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    options = {"size": {"shortest_edge": 336}, "crop_size": 336, **settings}
    return np.asarray(CLIPImageProcessorPil(**options)(image, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize(
    "size", [(600, 400), (301, 517), (336, 336), (337, 336), (1, 1), (35, 700), (1000, 20), (2, 3)]
)
def test_pixels_equal_transformers_bit_for_bit(size: tuple[int, int]) -> None:
    image = random_image(*size)
    pixels, _ = pixel_values(image, SETTINGS)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, transformers_pixels(image))


@pytest.mark.parametrize(("number", "name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic")])
def test_other_settings_equal_transformers(number: int, name: Any) -> None:
    image = random_image(130, 90)
    settings = msgspec.structs.replace(
        SETTINGS,
        resize_shortest=60,
        crop_height=56,
        crop_width=56,
        resample=name,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
    )
    expected = transformers_pixels(
        image,
        size={"shortest_edge": 60},
        crop_size=56,
        resample=number,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.4],
    )
    np.testing.assert_array_equal(pixel_values(image, settings)[0], expected)


def test_crop_says_what_the_model_sees() -> None:
    _, crop = pixel_values(random_image(600, 400), SETTINGS)
    assert (crop.left, crop.top, crop.width, crop.height) == pytest.approx((100, 0, 400, 400), abs=1.5)
    _, crop = pixel_values(random_image(300, 900), SETTINGS)
    assert (crop.left, crop.top, crop.width, crop.height) == pytest.approx((0, 300, 300, 300), abs=1.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = random_image(40, 24)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    converted = random_image(20, 10).convert(mode)
    got = load_image(converted)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), np.asarray(converted.convert("RGB")))


def test_palette_with_transparency(tmp_path: Path) -> None:
    random_image(20, 10).convert("P").save(tmp_path / "a.png", transparency=3)
    assert load_image(tmp_path / "a.png").mode == "RGB"


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, dtype: type) -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(dtype)
    image = Image.fromarray(ramp)
    if dtype is np.uint16:
        image.save(tmp_path / "a.png")
        image = load_image(tmp_path / "a.png")
    expected = np.arange(256).reshape(16, 16)
    np.testing.assert_allclose(np.asarray(load_image(image))[:, :, 0], expected, atol=1)


def test_arrays() -> None:
    colour = np.asarray(random_image(20, 10))
    grey = colour[:, :, 0]
    for array, expected in (
        (colour, colour),
        (grey, np.stack([grey] * 3, -1)),
        (grey[:, :, None], np.stack([grey] * 3, -1)),
        (np.dstack([colour, grey]), colour),
        (colour / 255, colour),
        (colour[:, ::-1], colour[:, ::-1]),
    ):
        np.testing.assert_array_equal(np.asarray(load_image(array)), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 10, 20), np.uint8), r"not \[3, 10, 20\]"),
        (np.zeros((1, 10, 20, 3), np.uint8), r"not \[1, 10, 20, 3\]"),
        (np.zeros((0, 10, 3), np.uint8), r"not \[0, 10, 3\]"),
        (np.zeros((10, 20, 3), np.int64), "not int64"),
        (np.full((4, 4, 3), 255.0), "from 0 to 1"),
        (np.full((4, 4, 3), np.nan), "from 0 to 1"),
    ],
)
def test_wrong_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_image(array)


def test_other_objects_are_refused() -> None:
    with pytest.raises(UsageError, match="not list"):
        load_image([[1, 2]])  # type: ignore[arg-type]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any data."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("huge.png", png_header(20_000, 20_000), r"huge.png.*(20000 x 20000|too large).*scale the image down"),
        ("large.png", png_header(10_000, 10_000), "10000 x 10000 pixels.*scale the image down"),
        ("notes.png", b"shopping list\n" * 50, "not an image that Pillow reads"),
        ("empty.png", b"", "not an image that Pillow reads"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_cut_files(tmp_path: Path, name: str) -> None:
    random_image(200, 100).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=name):
        load_image(tmp_path / name)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "nothing.jpg")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(InputError, match=r"too narrow.*crop it first"):
        pixel_values(Image.new("RGB", (1, 10_000)), SETTINGS)
