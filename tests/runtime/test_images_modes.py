"""Images of every mode and array type become what transformers makes of them, where it does not clip or lose alpha."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_images import SETTINGS, encoded, png_chunk, random_array, random_image, transparent_image
from PIL import Image

from vtexport.errors import InputError, UsageError
from vtexport.runtime.images import load_image, pixel_values


def transformers_rgb(image: Image.Image | np.ndarray, **options: Any) -> np.ndarray:
    """[H, W, 3]"""
    from transformers.image_transforms import convert_to_rgb

    return np.asarray(convert_to_rgb(image, return_numpy=True, **options))


def transformers_pixels(image: Image.Image) -> np.ndarray:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"])


def got(image: Any) -> np.ndarray:
    loaded = load_image(image)
    assert (loaded.mode, loaded.info) == ("RGB", {})
    return np.asarray(loaded)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """[H, W, 3] in 0 to 255, unrounded."""
    alpha = rgba[..., 3:] / 255
    return np.asarray(alpha * rgba[..., :3] + (1 - alpha) * 255)


# Where the library is not followed: it clips 16-bit samples at 255 and F to 0 and 1, fails at La, drops RGBa's alpha.
# Mode I is followed up to 255. Each has a test below.
OTHERWISE = {"I;16", "I;16B", "I;16L", "I;16N", "La", "RGBa", "F"}


def in_mode(mode: str) -> list[Image.Image]:
    """Images in one mode, from opaque and transparent ones."""
    opaque, transparent = random_image(23, 15), transparent_image(23, 15)
    ways: dict[str, list[str]] = {"I": ["L"], "PA": ["RGBA"], "LAB": ["RGB"], "P": ["RGB"]}
    images = []
    for source in (opaque, transparent):
        for through in ways.get(mode, [source.mode]):
            images.append(source.convert(through).convert(mode))
    return images


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - OTHERWISE))
def test_every_mode_is_as_transformers_makes_it(mode: str) -> None:
    for image in in_mode(mode):
        assert image.mode == mode
        np.testing.assert_array_equal(got(image), transformers_rgb(image))
        np.testing.assert_array_equal(pixel_values(load_image(image), SETTINGS)[0], transformers_pixels(image))


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [
        ("P", 3), ("P", bytes(range(256))), ("P", b"\0"), ("L", 77), ("RGB", (10, 20, 30)), ("1", 0), ("1", 255),
        ("CMYK", 3), ("RGBA", 0),
    ],
)  # fmt: skip
def test_a_transparent_colour_is_as_transformers_makes_it(mode: str, transparency: Any) -> None:
    array = random_array(23, 15)
    array[3:6] = (10, 20, 30)
    image = Image.fromarray(array).convert(mode)
    if mode in {"L", "P"}:
        image.paste(77 if mode == "L" else 3, (0, 0, 9, 9))
    image.info["transparency"] = transparency
    expected = transformers_rgb(image)
    np.testing.assert_array_equal(got(image), expected)
    assert image.info["transparency"] == transparency
    if mode in {"L", "RGB", "P", "1"}:
        assert (expected == 255).all(axis=-1).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RGBA", {}), ("LA", {}), ("P", {"transparency": 3}), ("P", {"transparency": b"\0\x80\xff"}),
        ("L", {"transparency": 3}), ("RGB", {"transparency": (10, 20, 30)}), ("1", {"transparency": 0}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_files_with_alpha(tmp_path: Path, name: str, options: dict[str, Any], kind: str) -> None:
    source = transparent_image(23, 15) if "A" in name else random_image(23, 15)
    path = tmp_path / "image"
    try:
        path.write_bytes(encoded(source.convert(name), kind, **options))
    except OSError:
        pytest.skip(f"Pillow writes no {kind} of mode {name}")
    np.testing.assert_array_equal(got(path), transformers_rgb(Image.open(path)))


def test_black_writing_on_a_transparent_ground_can_be_read() -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (5, 5, 9, 9))
    paletted = Image.merge("PA", (image.convert("L").convert("P"), image.getchannel("A")))
    for each in (image, image.convert("LA"), image.convert("P"), paletted, image.convert("RGBa")):
        values = got(each)
        assert values[0, 0].tolist() == [255, 255, 255]
        assert values[6, 6].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("mode", "straight"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_alpha_is_composited(mode: str, straight: str) -> None:
    image = transparent_image(23, 15).convert(straight)
    premultiplied = image.convert(mode)
    np.testing.assert_array_equal(got(premultiplied), transformers_rgb(premultiplied.convert(straight)))
    np.testing.assert_allclose(got(premultiplied), got(image), atol=2)  # what 8 bits lose by premultiplying


def test_a_palette_with_alpha_is_composited() -> None:
    """transformers looks for an entry in `info`, which Pillow writes into files only."""
    quantized = transparent_image(8, 6).convert("P")
    assert quantized.palette is not None
    assert quantized.palette.mode == "RGBA"
    saved = Image.open(io.BytesIO(encoded(quantized, "PNG")))
    np.testing.assert_array_equal(got(quantized), transformers_rgb(saved))


def test_the_a_of_lab_is_a_colour() -> None:
    """Its unused fourth byte is 0 when the image is merged from bands, which transformers takes for transparent."""
    image = random_image(23, 15).convert("LAB")
    merged = Image.merge("LAB", image.split())
    np.testing.assert_array_equal(got(merged), transformers_rgb(image))


RAMP = np.linspace(0, 65535, 15 * 23).round().reshape(15, 23)
# The nearest of 256 levels, and no other: 257 steps of 16 bits are one of 8
SCALED = np.repeat(np.rint(RAMP / 257)[:, :, None], 3, axis=2)


def sixteen_bits(mode: str) -> Image.Image:
    dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    return Image.frombytes(mode, (23, 15), RAMP.astype(dtype).tobytes())


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    image = sixteen_bits(mode)
    assert (transformers_rgb(image) == 255).mean() > 0.9
    np.testing.assert_array_equal(got(image), SCALED)
    image.info["transparency"] = int(RAMP[2, 5])
    values = got(image)
    assert values[2, 5].tolist() == [255] * 3
    assert (values != SCALED).any(axis=-1).sum() == 1


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_files_of_sixteen_bits(tmp_path: Path, kind: str) -> None:
    mode, dtype = ("I", np.int32) if kind == "PPM" else ("I;16", np.uint16)  # what Pillow writes as 16 bits
    (tmp_path / "a").write_bytes(encoded(sixteen_bits(mode), kind))
    np.testing.assert_array_equal(got(tmp_path / "a"), SCALED)
    dark = Image.fromarray(np.full((4, 4), 200, dtype))  # within 8 bits, but the file says that it has 16
    (tmp_path / "dark").write_bytes(encoded(dark, kind))
    assert (got(tmp_path / "dark") == 1).all()


def png(width: int, bits: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of one row."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in parts)


@pytest.mark.parametrize(
    ("bits", "colour", "row", "transparent", "expected"),
    [
        (16, 0, struct.pack(">4H", 0, 257, 1000, 65535), struct.pack(">H", 257), [0, 255, 4, 255]),
        (8, 0, bytes([0, 1, 2, 3]), struct.pack(">H", 2), [0, 1, 255, 3]),
        (4, 0, bytes([0x01, 0x23]), struct.pack(">H", 1), [0, 255, 34, 51]),
        (2, 0, bytes([0b00011011]), struct.pack(">H", 2), [0, 85, 255, 255]),
        (1, 0, bytes([0b01010000]), struct.pack(">H", 0), [255, 255, 255, 255]),
        (16, 2, struct.pack(">12H", *[0] * 3, *[512] * 3, *[768] * 3, *[65535] * 3), struct.pack(">3H", *[512] * 3),
         [0, 255, 3, 255]),
    ],
)  # fmt: skip
def test_transparent_colours_of_png_count_in_the_samples_of_the_file(
    tmp_path: Path, bits: int, colour: int, row: bytes, transparent: bytes, expected: list[int]
) -> None:
    data = png(4, bits, colour, row, (b"tRNS", transparent))
    (tmp_path / "a.png").write_bytes(data)
    assert got(tmp_path / "a.png")[0, :, 0].tolist() == expected
    opened = Image.open(io.BytesIO(data))
    for _ in range(2):
        assert got(opened)[0, :, 0].tolist() in (expected, transformers_rgb(opened)[0, :, 0].tolist())


def test_twelve_bits_of_a_tiff_file(tmp_path: Path) -> None:
    row = np.array([0, 1024, 2048, 4095], np.int64)
    packed = b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in row.reshape(2, 2))
    entries = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in entries.items()
    )
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + b"\0\0\0\0"
    (tmp_path / "a.tif").write_bytes(data)
    assert got(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536], [-(2**31), 2**31 - 1]])
def test_thirty_two_bits_of_unknown_range_are_refused(tmp_path: Path, values: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    image.save(tmp_path / "a.tif")
    for each in (image, tmp_path / "a.tif"):
        with pytest.raises(InputError, match=f"from {values[0]} to {values[1]}, and only 0 to 65535.*save them in 8"):
            load_image(each)


def test_floating_samples(tmp_path: Path) -> None:
    levels = random_array(23, 15)[:, :, 0]
    image = Image.fromarray((levels / 255).astype(np.float32))
    image.save(tmp_path / "a.tif")
    for each in (image, tmp_path / "a.tif"):
        np.testing.assert_array_equal(got(each), np.repeat(levels[:, :, None], 3, axis=2))
    for values, said in (([0, 255], "from 0 to 255"), ([-0.5, 1], "from -0.5 to 1"), ([0, np.nan], "not finite")):
        wrong = Image.fromarray(np.array([values], np.float32))
        wrong.save(tmp_path / "b.tif")
        for each in (wrong, tmp_path / "b.tif"):
            with pytest.raises(InputError, match=f"floating samples .*{said}, and only 0 to 1"):
                load_image(each)


def test_arrays() -> None:
    colour = random_array(20, 10)
    grey = colour[:, :, 0]
    greys = np.stack([grey] * 3, -1)
    bilevel = grey > 100
    for array, expected in (
        (colour, colour),
        (grey, greys),
        (grey[:, :, None], greys),
        (colour / 255, colour),
        ((colour / 255).astype(np.float32), colour),
        (colour[:, ::-1], colour[:, ::-1]),
        (np.asfortranarray(colour), colour),
        (colour.astype(np.uint16) * 257, colour),
        ((colour.astype(np.uint16) * 257).astype(">u2"), colour),
        (grey.astype(np.uint16) * 257, greys),
        (bilevel, np.stack([bilevel * 255] * 3, -1)),
        (np.ma.masked_array(colour), colour),
    ):
        np.testing.assert_array_equal(got(array), expected)


def test_arrays_with_alpha() -> None:
    """As transformers composites arrays, whose rounding is not that of PIL images (one level)."""
    rgba = np.asarray(transparent_image(20, 12))
    expected = transformers_rgb(rgba, input_data_format="channels_last")
    np.testing.assert_array_equal(got(rgba), expected)
    np.testing.assert_allclose(got(rgba), got(Image.fromarray(rgba)), atol=1)
    np.testing.assert_allclose(got(rgba), on_white(rgba), atol=0.5)
    for dtype in (np.float64, np.float32, np.float16):
        floating = (rgba / 255).astype(dtype)
        composited = transformers_rgb(floating, input_data_format="channels_last")
        np.testing.assert_array_equal(got(floating), np.rint(composited.astype(np.float64) * 255))
    np.testing.assert_allclose(got(rgba.astype(np.uint16) * 257), on_white(rgba), atol=0.51)
    np.testing.assert_array_equal(got(rgba > 127), on_white((rgba > 127) * 255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 10, 20), np.uint8), r"not \[3, 10, 20\]; bring its channels into the last place"),
        (np.zeros((1, 10, 20, 3), np.uint8), r"not \[1, 10, 20, 3\]"),
        (np.zeros((0, 10, 3), np.uint8), r"not \[0, 10, 3\]"),
        (np.zeros((10, 20, 3), np.int64), r"not int64; convert it, with .astype\('uint8'\)"),
        (np.zeros((10, 20, 3), np.int8), "not int8"),
        (np.zeros((10, 20, 3), np.uint32), "not uint32"),
        (np.zeros((10, 20, 3), np.complex64), "not complex64"),
        (np.zeros((10, 20, 3), object), "not object"),
        (np.zeros((10, 20), "U1"), "not <U1"),
        (np.full((4, 4, 3), 255.0), "from 0 to 1, and this one has values from 255 to 255; scale it"),
        (np.full((4, 4, 4), -0.1), "has values from -0.1 to -0.1"),
        (np.full((4, 4, 3), np.nan), "has values that are not finite"),
    ],
)
def test_wrong_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_image(array)


def test_an_array_that_is_too_large_is_refused_before_it_is_converted() -> None:
    array = np.broadcast_to(np.uint8(0), (100_000, 100_000, 3))
    with pytest.raises(InputError, match="the image array has 100000 x 100000 pixels, more than"):
        load_image(array)


def test_other_objects_are_refused() -> None:
    with pytest.raises(UsageError, match="not list"):
        load_image([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"not bytes; open them with PIL.Image.open\(io.BytesIO"):
        load_image(b"\x89PNG")  # type: ignore[arg-type]
