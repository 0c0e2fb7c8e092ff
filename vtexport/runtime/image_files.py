"""Image files, whatever is in them: an upright RGB image, or one sentence about what is wrong."""

from __future__ import annotations

import base64
import binascii
import functools
import importlib
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, unquote_to_bytes

from PIL import Image, UnidentifiedImageError, features

from vtexport.errors import InputError, VtexportError
from vtexport.runtime.image_kinds import HEAD_BYTES, Kind, kind_of
from vtexport.runtime.image_metadata import orientation, without_metadata
from vtexport.runtime.image_modes import MAX_PIXELS, check_size, to_rgb

# The formats that cameras, browsers, datasets and image libraries write. Pillow has some thirty further parsers, among
# them one that starts Ghostscript: nobody needs them here, and each takes bytes from strangers. MPO opens as JPEG.
FORMATS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff", "PPM": "Ppm",
    "AVIF": "Avif",
}  # fmt: skip
_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF"
# A pipe is read into memory. More bytes than the largest image has uncompressed are no image.
_MOST_PIPED_BYTES = 2**30
_SIXTEEN_BITS_IN_MODE_I = {"PNG", "PPM"}  # how Pillow before 11 opens 16-bit PNG, and all versions 16-bit PPM
# What a transparent grey or colour is counted in, against the 8-bit samples that Pillow makes
_TRANSPARENCY_SCALE: dict[str, Callable[[int], int]] = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
    "RGB;16B": lambda value: value >> 8,
}


def read(name: str) -> tuple[Image.Image, list[str]]:
    """The upright RGB image of a path, a `file:` URL or a `data:` URL, and sentences on what was passed over.

    A path may begin with ~. Of an animation or a file with several images it is the first.

    Raises:
        InputError: there is no such file, it is no image in a format of `FORMATS`, is damaged, or has more than
            `MAX_PIXELS` pixels.
    """
    if name[:5].lower() == "data:":
        return _decoded(_data_url(name), "the data URL")
    path = _path(name)
    shown = _shown(path)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise InputError(f"{shown} is a device and not a file; give the path of an image")
        with open(path, "rb") as file:  # noqa: PTH123
            if stat.S_ISREG(mode):
                return _decoded(file, shown)
            data = file.read(_MOST_PIPED_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        link = " is a link to a file that" if os.path.islink(path) else ""  # noqa: PTH114
        raise InputError(f"{shown}{link} does not exist; give the path of an image") from error
    except IsADirectoryError as error:
        raise InputError(f"{shown} is a folder; give the path of an image") from error
    except PermissionError as error:
        raise InputError(f"{shown} may not be read by this user; change its permissions") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{shown} cannot be opened ({_reason(error)}); give the path of an image") from error
    if len(data) > _MOST_PIPED_BYTES:
        raise InputError(f"{shown} gives more than {_MOST_PIPED_BYTES:,} bytes, which is no image; give a file")
    return _decoded(data, shown)


def read_bytes(data: bytes, where: str, most_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """The same of a file's bytes; `where` names them in sentences.

    Raises:
        InputError: as `read`, or the image has more than `most_pixels` pixels.
    """
    width = height = 1
    with suppress(Exception), warnings.catch_warnings():  # what is wrong with the file, decoding it says
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_readers()) as image:
            width, height = image.size
    check_size(width, height, where, most_pixels)
    return _decoded(data, where)


def upright(image: Image.Image, where: str) -> tuple[Image.Image, list[str]]:
    """An image that Pillow has opened or made, in upright RGB, and sentences on what was passed over.

    Raises:
        InputError: its pixels cannot be decoded or converted, or are too many.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on sizes and metadata, of which ours are errors and sentences
        try:
            return _upright(image, where, metadata_may_fail=True)
        except VtexportError:
            raise
        except Exception as error:
            raise InputError(
                f"{where} (mode {image.mode}) cannot be read ({_reason(error)}); give it as a file or in mode RGB"
            ) from error


def _path(name: str) -> str:
    if not name:
        raise InputError("the path of the image is empty; give the path of an image")
    if "\0" in name:
        raise InputError(f"{_shown(name)} holds a zero byte, which no path can; give the path of an image")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", name)  # pathlib makes one slash of two
    if scheme is None or os.path.lexists(name):
        return os.path.expanduser(name)  # noqa: PTH111
    if scheme[1].lower() != "file":
        raise InputError(f"{_shown(name)} is a URL, and images are not downloaded; give the path of an image file")
    place = name[len("file:") :]
    if place.startswith("//"):
        host, slash, rest = place[2:].partition("/")
        if host not in {"", "localhost"}:
            raise InputError(f"{_shown(name)} names a file of another machine; give the path of an image here")
        place = slash + rest
    return place if os.path.lexists(place) else unquote(place)


def _data_url(url: str) -> bytes:
    described, comma, content = url.partition(",")
    try:
        data = unquote_to_bytes(content)
        if described.lower().endswith(";base64"):
            data = re.sub(rb"\s", b"", data)
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"the data URL {_shown(url[:40])}... is not valid base64 ({_reason(error)}); encode the image's bytes again"
        ) from error
    if not comma:
        raise InputError(f"the data URL {_shown(url[:40])} has no comma; give data:image/png;base64, and the bytes")
    return data


@functools.cache
def _readers() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    for module in FORMATS.values():
        with suppress(ImportError):
            importlib.import_module(f"PIL.{module}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decoded(source: BinaryIO | bytes, where: str) -> tuple[Image.Image, list[str]]:
    """The image in an open file, or in bytes; where Pillow cannot decode it, what it decodes without its metadata."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    head = file.read(HEAD_BYTES)
    if not head:
        raise InputError(f"{where} is empty; get a whole copy of the image")
    try:
        return _opened(file, where)
    except VtexportError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise _refusal(error, head, where) from error
    except Exception as error:
        first = error
    try:
        for stripped in without_metadata(_all_bytes(file)):
            try:
                return _opened(io.BytesIO(stripped), where)
            except VtexportError:
                raise
            except Exception:
                continue
    except (OSError, MemoryError):
        pass  # the first error tells more
    raise _refusal(first, head, where) from first


def _all_bytes(file: BinaryIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    return Path(file.name).read_bytes()  # opened again, because libtiff moves an open file's position unseen


def _opened(file: BinaryIO, where: str) -> tuple[Image.Image, list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `upright`
        with Image.open(file, formats=_readers()) as image:
            return _upright(image, where, metadata_may_fail=False)


def _upright(image: Image.Image, where: str, *, metadata_may_fail: bool) -> tuple[Image.Image, list[str]]:
    check_size(*image.size, where)
    tiles, bits = getattr(image, "tile", None), _bits(image)
    try:
        image.load()
    except (ValueError, TypeError, KeyError, SyntaxError, struct.error):
        # At metadata after the pixels Pillow has decoded these, and `tile` is empty; those of TIFF it would turn then
        if not metadata_may_fail or getattr(image, "tile", None) != [] or image.format == "TIFF":
            raise
    turn, problem = orientation(image)
    rgb = to_rgb(image, where, bits=bits, transparency=_transparency(image, tiles))
    if turn is not None:
        rgb = rgb.transpose(turn)
    return rgb, [f"{where} {problem}"] if problem else []


def _transparency(image: Image.Image, tiles: Any) -> Any:
    """The transparent part, in the samples that Pillow made of `tiles`; a PNG file's entry counts in its own."""
    transparency = image.info.get("transparency")
    scale = _TRANSPARENCY_SCALE.get(tiles[0][3]) if image.format == "PNG" and tiles else None
    if scale is not None and isinstance(transparency, int):
        return scale(transparency)
    if scale is not None and isinstance(transparency, tuple):
        return tuple(scale(value) for value in transparency)
    return transparency


def _bits(image: Image.Image) -> int | None:
    """Bits of a sample in the file, where that is known and Pillow gives more than 8."""
    if image.mode.startswith("I;16"):
        stated = getattr(image, "tag_v2", {}).get(258)  # TIFF's BitsPerSample, which may be 12
        return stated[0] if isinstance(stated, tuple) and stated and 8 < stated[0] < 16 else 16
    return 16 if image.mode == "I" and image.format in _SIXTEEN_BITS_IN_MODE_I else None


def _refusal(error: Exception, head: bytes, where: str) -> InputError:
    """One sentence for a file that gave no image."""
    if isinstance(error, Image.DecompressionBombError):
        said = str(error).split(",", maxsplit=1)[0]
        return InputError(f"{where} is too large ({said}); scale the image down first")
    if isinstance(error, MemoryError):
        return InputError(f"{where} needs more memory than there is to be decoded; scale the image down first")
    kind = kind_of(head)
    if kind is None:
        return InputError(f"{where} is not an image in a known format ({_NAMES}); convert it to one of them")
    if kind.reader is None:
        return InputError(f"{where} is not an image that is taken but {kind.name}; {kind.step}")
    if not _has_reader(kind):
        return InputError(f"{where} is {kind.name}, which this Pillow cannot read; update Pillow or convert it to PNG")
    said = "" if isinstance(error, UnidentifiedImageError) else f" ({_reason(error)})"
    return InputError(
        f"{where} is {kind.name} that cannot be decoded{said}; "
        "it is damaged or of a rare kind: get a whole copy or save it as PNG"
    )


def _has_reader(kind: Kind) -> bool:
    if kind.reader in {"WEBP", "AVIF"}:
        return kind.reader in _readers() and bool(features.check(kind.reader.lower()))
    return kind.reader in _readers()


def _reason(error: BaseException) -> str:
    """The first line of a library's message, not long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".")[:60] if lines else "") or type(error).__name__


def _shown(path: str) -> str:
    """A path in a message: the end of a long one, nothing that would disturb a terminal."""
    shown = path if path.isprintable() else ascii(path)[1:-1]
    return shown if len(shown) <= 120 else "..." + shown[-117:]
