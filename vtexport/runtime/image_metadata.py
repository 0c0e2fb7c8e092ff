"""Metadata of image files: the orientation in them, and files without them where they are damaged.

Damaged metadata are no damaged image. Pillow reads many of them before the pixels and gives up where it fails, so a
file that it cannot decode is tried again without its metadata.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

_ORIENTATION = 0x0112
_XMP_KEYS = ("XML:com.adobe.xmp", "xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> tuple[Image.Transpose | None, str | None]:
    """The turn to an upright image, as of `ImageOps.exif_transpose`, and a sentence's end where it is not known.

    EXIF goes before XMP. What cannot be read, or is no orientation, turns nothing.
    """
    value: Any = None
    damaged = False
    for _ in range(2):  # the second time Pillow gives what it had read when it failed
        try:
            value = image.getexif().get(_ORIENTATION)
            break
        except Exception:  # whatever the parser trips over: struct.error, SyntaxError, ValueError, ...
            damaged = True
    if value is None and damaged:
        value = _xmp_orientation(image.info)
        if value is None:
            return None, "has metadata that cannot be read, so an orientation in them is not applied"
    turn = _TURNS.get(value)
    if turn is None and value not in (None, 0, 1):  # 0 is what some cameras write for upright
        return None, f"has the orientation {str(value)[:20]!r}, which is none of 1 to 8 and is not applied"
    return turn, None


def _xmp_orientation(info: dict[Any, Any]) -> int | None:
    for key in _XMP_KEYS:
        packet = info.get(key)
        parts = packet if isinstance(packet, tuple) else (packet,)
        data = b"".join(
            part.encode(errors="replace") if isinstance(part, str) else part
            for part in parts
            if isinstance(part, (str, bytes))
        )
        found = re.search(rb'tiff:Orientation(="|>)([0-9])', data)
        if found:
            return int(found[2])
    return None


def without_metadata(data: bytes) -> Iterator[bytes]:
    """An image file without its metadata: first with its EXIF data, then without these as well.

    JPEG, PNG, WebP and TIFF; nothing for other formats and for files whose parts cannot be told apart.
    """
    strip = {b"\xff\xd8": _jpeg, b"\x89P": _png, b"RI": _webp, b"II": _tiff, b"MM": _tiff}.get(data[:2])
    before: bytes | None = data
    for exif in (True, False):
        try:
            stripped = strip(data, exif) if strip else None
        except (struct.error, IndexError, ValueError, OverflowError):
            return
        if stripped not in (None, before):
            yield stripped
        before = stripped


def _jpeg(data: bytes, exif: bool) -> bytes | None:
    """Without APP1 to APP13, APP15 and comments; JFIF (APP0) and Adobe's APP14 say what the colours are, if whole."""
    kept = [data[:2]]
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in {0xDA, 0xD9}:  # the scan follows
            return b"".join([*kept, data[at:]])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        colours = marker in {0xE0, 0xEE} and end - at - 4 >= 12  # shorter ones say nothing to a decoder
        metadata = (0xE0 <= marker <= 0xEF or marker == 0xFE) and not colours
        if not metadata or (exif and marker == 0xE1):
            kept.append(data[at:end])
        at = end


def _png(data: bytes, exif: bool) -> bytes | None:
    """The chunks that the pixels need, found by name and checksum: a wrong length before them does not matter."""
    needed = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    kept = [data[:8]]
    at = 8
    for found in re.finditer(b"IHDR|PLTE|tRNS|IDAT|IEND|eXIf", data):
        start = found.start()
        if start - 4 < at:
            continue
        name, end = found[0], start + 4 + int.from_bytes(data[start - 4 : start], "big")
        whole = zlib.crc32(data[start:end]) == int.from_bytes(data[end : end + 4], "big") and end + 4 <= len(data)
        if name in needed and not whole:
            return None
        if whole and (exif or name in needed):
            kept.append(data[start - 4 : end + 4])
            at = end + 4
        if name == b"IEND":
            break
    return b"".join(kept)


def _webp(data: bytes, exif: bool) -> bytes | None:
    kept = []
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        chunk = data[at:end]
        if name == b"VP8X":
            metadata = 0x20 | 0x04 | (0 if exif else 0x08)  # flags: ICC profile, XMP, EXIF
            chunk = chunk[:8] + bytes([chunk[8] & ~metadata]) + chunk[9:]
        needed = name in {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
        if needed and at + 8 + size > len(data):
            return None  # cut short
        if needed or (exif and name == b"EXIF"):
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


# Tags by which TIFF readers find and decode the pixels of the first image
_TIFF_TAGS = {
    *(255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338),
    *(339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532),
}


def _tiff(data: bytes, exif: bool) -> bytes | None:
    """With a new directory after the file; the first image's pixels stay where they are."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset_format, count_format, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    header_bytes = 8 if big else 4  # before the first directory's offset
    (directory,) = struct.unpack_from(order + offset_format, data, header_bytes)
    (count,) = struct.unpack_from(order + count_format, data, directory)
    first = directory + struct.calcsize(count_format)
    starts = range(first, first + min(count, 4096) * entry_bytes, entry_bytes)  # no file has as many tags
    entries = [data[start : start + entry_bytes] for start in starts]
    tags = _TIFF_TAGS | ({_ORIENTATION} if exif else set())
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in tags]
    body = struct.pack(order + count_format, len(kept)) + b"".join(kept) + struct.pack(order + offset_format, 0)
    padding = b"\0" * (-len(data) % 8)
    start = struct.pack(order + offset_format, len(data) + len(padding))
    return data[:header_bytes] + start + data[header_bytes + len(start) :] + padding + body
