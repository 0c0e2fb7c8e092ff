"""Damaged metadata are no damaged image: the pixels come out, upright where an orientation can be read."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_images import encoded, png_chunk, random_image
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from vtexport.errors import InputError
from vtexport.runtime.images import load_image, read_image

STORED = random_image(40, 24)
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def exif(entries: list[Entry], order: str = "<") -> bytes:
    """A directory as EXIF stores it, without its "Exif" header."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    body, data = struct.pack(order + "H", len(entries)), b""
    behind = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count)
        if len(value) <= 4:
            body += value.ljust(4, b"\0")
        else:
            body += struct.pack(order + "I", behind + len(data))
            data += value
    return head + body + struct.pack(order + "I", 0) + data


SIX: Entry = (0x0112, 3, 1, struct.pack("<H", 6))
# The EXIF block, and the orientation that can be read from it
BLOCKS: dict[str, tuple[bytes, int]] = {
    "sound": (exif([SIX]), 6),
    "big endian": (exif([(0x0112, 3, 1, struct.pack(">H", 8))], ">"), 8),
    "rational (-1, 0)": (exif([SIX, (0x829A, 10, 1, struct.pack("<ii", -1, 0))]), 6),
    "rational (0, 0)": (exif([SIX, (0x011A, 5, 1, struct.pack("<II", 0, 0))]), 6),
    "two values where one is expected": (exif([SIX, (0x011A, 5, 2, struct.pack("<IIII", 72, 1, 72, 1))]), 6),
    "orientation as a string": (exif([(0x0112, 2, 2, b"6\0")]), 1),
    "orientation 0": (exif([(0x0112, 3, 1, struct.pack("<H", 0))]), 1),
    "orientation 9": (exif([(0x0112, 3, 1, struct.pack("<H", 9))]), 1),
    "orientation as LONG": (exif([(0x0112, 4, 1, struct.pack("<I", 6))]), 6),
    "orientation as a rational": (exif([(0x0112, 5, 1, struct.pack("<II", 6, 1))]), 6),
    "orientation is not a number": (exif([(0x0112, 12, 1, struct.pack("<d", float("nan")))]), 1),
    "double header": (b"Exif\0\0" + exif([SIX]), 6),
    "garbage": (b"\0\x08\0\x02\x01\x12\0\x03" * 4, 1),
    "short garbage": (b"\0\x08\0\x02\x01\x12", 1),
    "empty": (b"", 1),
    "directory behind the end": (b"II*\0" + struct.pack("<I", 100_000), 1),
    "huge count": (exif([SIX, (0x010E, 2, 0x7FFFFFFF, struct.pack("<I", 8))]), 6),
    "unknown type": (exif([SIX, (0x9999, 99, 1, b"\0\0\0\1")]), 6),
    "cut": (exif([SIX])[:-6], 1),
    "pointer to GPS astray": (exif([SIX, (0x8825, 4, 1, struct.pack("<I", 0xFFFFFFF0))]), 6),
    "pointer to EXIF is a string": (exif([SIX, (0x8769, 2, 4, b"abc\0")]), 6),
}


def files_with(block: bytes) -> dict[str, bytes]:
    """The stored image with an EXIF block, in every format that has them."""
    png = encoded(STORED, "PNG")
    end = png.index(b"IDAT") - 4
    return {
        "jpg": encoded(STORED, "JPEG", quality=95, exif=b"Exif\0\0" + block),
        "png": png[:end] + png_chunk(b"eXIf", block) + png[end:],
        "last.png": png[:-12] + png_chunk(b"eXIf", block) + png[-12:],
        "webp": encoded(STORED, "WEBP", lossless=True, exif=b"Exif\0\0" + block if block else b""),
    }


def pixels(file: Path) -> np.ndarray:
    return np.asarray(load_image(file))


def turned(orientation: int, stored: Image.Image = STORED) -> np.ndarray:
    return np.asarray(stored.transpose(TURN[orientation]) if orientation in TURN else stored)


def exif_transposed(file: Path) -> np.ndarray | None:
    """Pillow's upright form of a file, or None where it gives up."""
    try:
        return np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    except (SyntaxError, ValueError, TypeError, struct.error):
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, while the test opens the files itself
@pytest.mark.parametrize("name", BLOCKS)
def test_exif(tmp_path: Path, name: str) -> None:
    block, orientation = BLOCKS[name]
    for ending, data in files_with(block).items():
        file = tmp_path / f"a.{ending}"
        file.write_bytes(data)
        with Image.open(file) as opened:
            stored = opened.convert("RGB")
        readable = orientation
        peer = exif_transposed(file)
        if name == "double header" and (peer is None or peer.shape[0] == STORED.height):
            readable = 1  # versions of Pillow differ here
        elif peer is not None:
            np.testing.assert_array_equal(peer, turned(readable, stored))
        np.testing.assert_array_equal(pixels(file), turned(readable, stored))
        with Image.open(file) as opened:
            np.testing.assert_array_equal(np.asarray(load_image(opened)), turned(readable, stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "MPO"])
def test_every_orientation_is_applied_once(tmp_path: Path, orientation: int, kind: str) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    (tmp_path / "a").write_bytes(encoded(STORED, kind, exif=tags, **({"lossless": True} if kind == "WEBP" else {})))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a")).convert("RGB"))
    if kind in {"PNG", "WEBP", "TIFF"}:
        np.testing.assert_array_equal(expected, turned(orientation))
    np.testing.assert_array_equal(pixels(tmp_path / "a"), expected)
    np.testing.assert_array_equal(np.asarray(load_image(load_image(tmp_path / "a"))), expected)
    opened = Image.open(tmp_path / "a")
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(load_image(opened)), expected)


def test_wide_and_transparent_images_are_turned_too(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    for mode in ("I;16", "LA", "P", "1"):
        Image.new(mode, (5, 3)).save(tmp_path / "a.png", exif=tags)
        assert load_image(tmp_path / "a.png").size == (3, 5)


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></rdf:RDF></x:xmpmeta>'
)


def test_xmp_orientation(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP)
    for kind, options in (
        ("JPEG", {"xmp": XMP.encode()}),
        ("WEBP", {"xmp": XMP.encode()}),
        ("PNG", {"pnginfo": text}),
        ("TIFF", {"tiffinfo": {700: XMP.encode(), 0x0112: 6}}),
    ):
        (tmp_path / "a").write_bytes(encoded(STORED, kind, **options))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a")).convert("RGB"))
        np.testing.assert_array_equal(pixels(tmp_path / "a"), expected)


def with_xmp(packet: Any) -> Image.Image:
    image = STORED.copy()
    image.info["xmp"] = packet
    return image


@pytest.mark.parametrize("packet", [XMP, (XMP.encode(),), (XMP,), (XMP[:200].encode(), XMP[200:])])
def test_xmp_of_a_type_that_pillow_trips_over(packet: Any) -> None:
    read = ImageOps.exif_transpose(with_xmp(XMP.encode())).size != STORED.size  # Pillow before 11 does not look there
    image = with_xmp(packet)
    np.testing.assert_array_equal(np.asarray(load_image(image)), turned(6 if read else 1))
    for other in (4, (1, 2), "no packet", b""):
        np.testing.assert_array_equal(np.asarray(load_image(with_xmp(other))), turned(1))


def test_what_was_passed_over_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    for name, said in (
        ("sound", []),
        ("orientation 0", []),
        ("short garbage", ["has metadata that cannot be read, so an orientation in them is not applied"]),
        ("orientation 9", ["has the orientation '9', which is none of 1 to 8 and is not applied"]),
    ):
        file.write_bytes(files_with(BLOCKS[name][0])["png"])
        assert read_image(file).warnings == [f"{file} {text}" for text in said]


def with_chunk(chunk: bytes, *, last: bool = False) -> bytes:
    png = encoded(STORED, "PNG")
    place = len(png) - 12 if last else png.index(b"IDAT") - 4
    return png[:place] + chunk + png[place:]


def damaged(chunk: bytes) -> bytes:
    """Its checksum is wrong."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


EIGHT = png_chunk(b"eXIf", exif([(0x0112, 3, 1, struct.pack("<H", 8))]))
PNG_CHUNKS = {
    "no profile": png_chunk(b"iCCP", b""),
    "a profile compressed otherwise": png_chunk(b"iCCP", b"name\0\7zzz"),
    "a profile of garbage": png_chunk(b"iCCP", b"name\0\0garbage"),
    "a text compressed otherwise": png_chunk(b"zTXt", b"key\0\5zzz"),
    "a text without an end": png_chunk(b"tEXt", b"key"),
    "an international text cut short": png_chunk(b"iTXt", b"key\0\1"),
    "a wrong checksum": damaged(png_chunk(b"tEXt", b"key\0value")),
    "short densities": png_chunk(b"pHYs", b"\0\0"),
    "a short gamma": png_chunk(b"gAMA", b"\0"),
    "short chromaticities": png_chunk(b"cHRM", b"\0" * 5),
    "no rendering intent": png_chunk(b"sRGB", b""),
    "a short animation": png_chunk(b"acTL", b"\0"),
    "a frame of another size": png_chunk(b"acTL", struct.pack(">II", 2, 0)) + png_chunk(b"fcTL", bytes(26)),
    "a text that is called bbox": png_chunk(b"tEXt", b"bbox\0nowhere"),
    "a text that is called transparency": png_chunk(b"tEXt", b"transparency\0blue"),
    "a text that is called xmp": png_chunk(b"tEXt", b'xmp\0tiff:Orientation="9"'),
    "an unknown name": png_chunk(b"vpAg", b"\1"),
    "a name of no letters": png_chunk(b"\0\1\2\3", b""),
    "a length that leads astray": struct.pack(">I", 2**31 - 1) + b"tEXtkey\0value",
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
@pytest.mark.parametrize("last", [False, True])
def test_damaged_chunks_of_png(tmp_path: Path, name: str, last: bool) -> None:
    file = tmp_path / "a.png"
    for before in (b"", EIGHT):
        file.write_bytes(with_chunk(before + PNG_CHUNKS[name], last=last))
        np.testing.assert_array_equal(pixels(file), turned(8 if before else 1))


def test_chunks_that_belong_to_the_pixels_are_not_passed_over(tmp_path: Path) -> None:
    """Without them the image would be another one."""
    file = tmp_path / "a.png"
    pixel_chunks = (png_chunk(b"tRNS", b"\0\1\0\1\0\1"), png_chunk(b"IDAT", b"abc"))
    for chunk in (damaged(pixel_chunks[0]), png_chunk(b"tRNS", b"\0\1"), damaged(pixel_chunks[1])):
        file.write_bytes(with_chunk(chunk))
        with pytest.raises(InputError, match="is a PNG file that cannot be decoded"):
            load_image(file)


def with_segment(marker: int, content: bytes) -> bytes:
    jpeg = encoded(STORED, "JPEG", quality=95)
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def multi_picture(entries: list[Entry]) -> bytes:
    return with_segment(0xE2, b"MPF\0" + exif(entries))


JPEG_FILES = {
    "a profile without parts": with_segment(0xE2, b"ICC_PROFILE\0"),
    "a profile of garbage": with_segment(0xE2, b"ICC_PROFILE\0\1\1garbage"),
    "a multi picture index of garbage": with_segment(0xE2, b"MPF\0garbage"),
    "a multi picture index without a count": multi_picture([(0xB000, 7, 4, b"0100")]),
    "a multi picture index with a count only": multi_picture([(0xB001, 4, 1, struct.pack("<I", 3))]),
    "a multi picture index with short entries": multi_picture(
        [(0xB001, 4, 1, struct.pack("<I", 3)), (0xB002, 7, 5, b"\0" * 5)]
    ),
    "Photoshop's block cut short": with_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0"),
    "Adobe's block cut short": with_segment(0xEE, b"Adobe"),
    "JFIF cut short": with_segment(0xE0, b"JFIF"),
    "XMP without text": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "fill bytes": (lambda data: data[:2] + b"\xff\xff" + data[2:])(encoded(STORED, "JPEG", quality=95)),
}


@pytest.mark.parametrize("name", JPEG_FILES)
def test_damaged_segments_of_jpeg(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG_FILES[name])
    plain = np.asarray(Image.open(io.BytesIO(encoded(STORED, "JPEG", quality=95))))
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), plain)


def test_orientation_beside_a_damaged_segment(tmp_path: Path) -> None:
    sound = encoded(STORED, "JPEG", quality=95, exif=b"Exif\0\0" + exif([SIX]))
    index = JPEG_FILES["a multi picture index with short entries"]
    segment = index[2 : index.index(b"\xff\xe0")]
    (tmp_path / "a.jpg").write_bytes(sound[:2] + segment + sound[2:])
    assert load_image(tmp_path / "a.jpg").size == (24, 40)


@pytest.mark.parametrize("lossless", [True, False])
def test_damaged_chunks_of_webp(tmp_path: Path, lossless: bool) -> None:
    plain = encoded(STORED, "WEBP", lossless=lossless)
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    tagged = encoded(STORED, "WEBP", lossless=lossless, exif=b"Exif\0\0" + exif([SIX]), icc_profile=b"\0" * 128)
    for place, values in ((b"ICCP", b"\xff\xff\xff\x7f"), (b"EXIF", b"\xff\xff\xff\x7f"), (b"EXIF", b"\1\0\0\0")):
        data = bytearray(tagged)
        at = data.index(place) + 4
        data[at : at + 4] = values
        (tmp_path / "a.webp").write_bytes(data)
        if place == b"ICCP":  # nothing behind it can be found
            with pytest.raises(InputError, match="is a WebP file that cannot be decoded"):
                load_image(tmp_path / "a.webp")
        else:
            np.testing.assert_array_equal(pixels(tmp_path / "a.webp"), expected)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        (282, 2, 4, b"abc\0"), (282, 10, 1, struct.pack("<ii", -1, 0)), (282, 5, 1, struct.pack("<II", 1, 0)),
        (296, 2, 2, b"x\0"), (34675, 7, 4, b"none"), (700, 4, 2, struct.pack("<II", 1, 2)), (34665, 2, 4, b"abc\0"),
        (34665, 4, 1, struct.pack("<I", 2**32 - 9)), (34853, 3, 1, b"\1\0"), (270, 2, 2**31 - 1, b"\7\0\0\0"),
        (65000, 99, 1, b"\0\0\0\1"), (305, 12, 2**30, b"\7\0\0\0"), (33550, 12, 0, b""),
    ],
)  # fmt: skip
def test_damaged_tags_of_tiff(tmp_path: Path, entry: Entry, big: bool, compression: str | None) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    data = encoded(STORED, "TIFF", exif=tags, compression=compression, **({"big_tiff": True} if big else {}))
    (tmp_path / "a.tif").write_bytes(with_tag(data, entry))
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), turned(6))


def with_tag(tiff: bytes, entry: Entry) -> bytes:
    """A little-endian TIFF file with one more tag, in a new directory behind it."""
    tag, kind, count, value = entry
    big = tiff[2] == 43
    offset, number, place, size, header = ("Q", "Q", 8, 20, 8) if big else ("I", "H", 4, 12, 4)
    start = struct.unpack_from("<" + offset, tiff, header)[0]
    entries = struct.unpack_from("<" + number, tiff, start)[0]
    first = start + struct.calcsize(number)
    old = [tiff[at : at + size] for at in range(first, first + entries * size, size)]
    tiff += b"\0" * (len(tiff) % 2)
    if len(value) > place:
        data, value = value, struct.pack("<" + offset, len(tiff))
        tiff += data + b"\0" * (len(data) % 2)
    new = struct.pack("<HH" + offset, tag, kind, count) + value.ljust(place, b"\0")
    kept = [each for each in old if struct.unpack_from("<H", each)[0] != tag]
    directory = sorted([*kept, new], key=lambda each: int(struct.unpack_from("<H", each)[0]))
    behind = struct.pack("<" + number, len(directory)) + b"".join(directory) + struct.pack("<" + offset, 0)
    return tiff[:header] + struct.pack("<" + offset, len(tiff)) + tiff[header + place :] + behind
