"""Kinds of files by their first bytes, for sentences about files that are not taken as images."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 4096  # as many as `kind_of` looks at

_CONVERT = "convert it to JPEG or PNG"
_PAGE = "save what it shows as a PNG"
_FRAME = "take a frame out of it, as `ffmpeg -i VIDEO -frames:v 1 frame.png` does"
_UNPACK = "unpack it and give one of its images"
_AGAIN = "give the image itself"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name with an article, what to do to get an image out of it, and `reader`.

    `reader` is Pillow's name of the format where it is one that is taken.
    """

    name: str
    step: str = ""
    reader: str | None = None


_BMP, _PPM = Kind("a BMP file", reader="BMP"), Kind("a PPM file", reader="PPM")
_WEBP, _AVIF = Kind("a WebP file", reader="WEBP"), Kind("an AVIF file", reader="AVIF")
_POSTSCRIPT = Kind("a PostScript (EPS) file", _PAGE)
_JPEG_2000, _JPEG_XL = Kind("a JPEG 2000 file", _CONVERT), Kind("a JPEG XL file", _CONVERT)
_VIDEO, _AUDIO = Kind("a video", _FRAME), Kind("a sound file", _AGAIN)
_HEIC = Kind("a HEIC (HEIF) file", "convert it to JPEG, or open it with pillow-heif and give that image")
_RAW = Kind("a camera's raw file", "develop it to JPEG or PNG")
_ARCHIVE = Kind("an archive or a compressed file", _UNPACK)
_MAGIC = {
    b"\xff\xd8\xff": Kind("a JPEG file", reader="JPEG"),
    b"\x89PNG": Kind("a PNG file", reader="PNG"),
    b"GIF8": Kind("a GIF file", reader="GIF"),
    b"II*\0": Kind("a TIFF file", reader="TIFF"),
    b"MM\0*": Kind("a TIFF file", reader="TIFF"),
    b"II+\0": Kind("a TIFF file", reader="TIFF"),
    b"MM\0+": Kind("a TIFF file", reader="TIFF"),
    b"%!PS": _POSTSCRIPT,
    b"\xc5\xd0\xd3\xc6": _POSTSCRIPT,
    b"%PDF": Kind("a PDF document", "save a page of it as a PNG"),
    b"\0\0\0\x0cjP  ": _JPEG_2000,
    b"\xff\x4f\xff\x51": _JPEG_2000,
    b"\0\0\0\x0cJXL ": _JPEG_XL,
    b"\xff\x0a": _JPEG_XL,
    b"8BPS": Kind("a Photoshop file", _CONVERT),
    b"gimp xcf": Kind("a GIMP file", _CONVERT),
    b"DDS ": Kind("a DDS texture", _CONVERT),
    b"\0\0\1\0": Kind("an icon (ICO) file", _CONVERT),
    b"icns": Kind("an icon (ICNS) file", _CONVERT),
    b"qoif": Kind("a QOI file", _CONVERT),
    b"\x76\x2f\x31\x01": Kind("an OpenEXR file", _CONVERT),
    b"#?RADIANCE": Kind("a Radiance HDR file", _CONVERT),
    b"SIMPLE  =": Kind("a FITS file", _CONVERT),
    b"\xd7\xcd\xc6\x9a": Kind("a Windows metafile", _CONVERT),
    b"FUJIFILMCCD-RAW": _RAW,
    b"IIRO": _RAW,
    b"IIU\0": _RAW,
    b"\x93NUMPY": Kind("a NumPy array", "load it with numpy.load and give the array"),
    b"\x89HDF": Kind("an HDF5 file", "give one of its arrays"),
    b"\x1a\x45\xdf\xa3": _VIDEO,
    b"\0\0\1\xba": _VIDEO,
    b"\0\0\1\xb3": _VIDEO,
    b"FLV\1": _VIDEO,
    b"OggS": Kind("a video or sound file", _FRAME),
    b"ID3": _AUDIO,
    b"fLaC": _AUDIO,
    b"PK\3\4": _ARCHIVE,
    b"\x1f\x8b": _ARCHIVE,
    b"BZh": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE,
    b"\xfd7zXZ": _ARCHIVE,
    b"\x28\xb5\x2f\xfd": _ARCHIVE,
    b"Rar!": _ARCHIVE,
}
# Brands of the ISO base media file format, by which HEIF, AVIF and MP4 name what they hold
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file that begins with `head`, up to `HEAD_BYTES` of it; None where it is not known."""
    if head[:4] == b"RIFF":
        return {b"WEBP": _WEBP, b"AVI ": _VIDEO, b"WAVE": _AUDIO}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _media(head)
    if head[128:132] == b"DICM":
        return Kind("a DICOM file", _CONVERT)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:1] == b"P" and head[1:2] in b"123456Ff" and head[2:3].isspace():
        return _PPM
    if _is_text(head):
        return _text(head)
    return _BMP if head[:2] == b"BM" else None


def _media(head: bytes) -> Kind:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return _AVIF
    if brands & _HEIF_BRANDS:
        return _HEIC
    return _RAW if b"crx " in brands else _VIDEO


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return True
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not only a character that is cut in two
            return False
        text = head[: error.start].decode("utf-8-sig")
    return all(character.isprintable() or character in "\t\n\r\f\v\x1b" for character in text)


def _text(head: bytes) -> Kind:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return Kind("a Git LFS pointer", "run `git lfs pull` for the image it stands for")
    if start.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start:
        return Kind("an SVG drawing", _PAGE)
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml")) and b"<html" in start[:1024]:
        return Kind("a web page (HTML), as a failed download leaves", "download the image again")
    if start.startswith(b"<"):
        return Kind("an XML or HTML text", _AGAIN)
    if start.startswith((b"{", b"[")):
        return Kind("a JSON text", _AGAIN)
    if start.startswith((b"/* xpm", b"#define")):
        return Kind("an XPM or XBM drawing", _CONVERT)
    return Kind("a text file", _AGAIN)
