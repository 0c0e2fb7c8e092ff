"""Files of every kind a camera, a browser or a person hands over: an image, or one sentence."""

from __future__ import annotations

import base64
import io
import os
import random
import re
import struct
import threading
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from made_up_images import encoded, png_chunk, random_array, random_image, transparent_image
from PIL import EpsImagePlugin, Image, features

from vtexport.errors import InputError
from vtexport.runtime.images import load_image

OPAQUE, TRANSPARENT = random_image(31, 22), transparent_image(31, 22)
ANIMATION = {"save_all": True, "append_images": [OPAQUE.rotate(180)]}
TAKEN: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
    "jpeg": ("JPEG", OPAQUE, {"comment": b"a view"}),
    "progressive jpeg": ("JPEG", OPAQUE, {"progressive": True}),
    "cmyk jpeg": ("JPEG", OPAQUE.convert("CMYK"), {}),
    "mpo": ("MPO", OPAQUE, ANIMATION),
    "png": ("PNG", TRANSPARENT, {}),
    "apng": ("PNG", OPAQUE, ANIMATION),
    "webp": ("WEBP", OPAQUE, {}),
    "lossless webp": ("WEBP", TRANSPARENT, {"lossless": True}),
    "animated webp": ("WEBP", OPAQUE, {"lossless": True, **ANIMATION}),
    "gif": ("GIF", OPAQUE.convert("P"), {"transparency": 3}),
    "animated gif": ("GIF", OPAQUE, ANIMATION),
    "bmp": ("BMP", OPAQUE, {}),
    "tiff": ("TIFF", TRANSPARENT, {}),
    "lzw tiff": ("TIFF", OPAQUE, {"compression": "tiff_lzw"}),
    "fax tiff": ("TIFF", OPAQUE.convert("1"), {"compression": "group4"}),
    "several tiff": ("TIFF", OPAQUE, ANIMATION),
    "ppm": ("PPM", OPAQUE, {}),
    "pbm": ("PPM", OPAQUE.convert("1"), {}),
    "avif": ("AVIF", TRANSPARENT, {}),
}


def made(name: str) -> bytes:
    kind, image, options = TAKEN[name]
    if kind == "AVIF" and not (hasattr(features, "modules") and "avif" in features.modules and features.check("avif")):
        pytest.skip("this Pillow writes no AVIF")
    return encoded(image, kind, **options)


def refusal(path: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_image(path)
    message = str(caught.value)
    assert len(message) < 300
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", TAKEN)
def test_formats_that_are_taken(tmp_path: Path, name: str) -> None:
    """By their content, under any name; of several images the first."""
    from transformers.image_transforms import convert_to_rgb

    path = tmp_path / "image.dat"
    path.write_bytes(made(name))
    expected = np.asarray(convert_to_rgb(Image.open(path), return_numpy=True))
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)


def ftyp(*brands: bytes) -> bytes:
    box = brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(box)) + b"ftyp" + box + bytes(200)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
OTHERS = {
    "page.pdf": (b"%PDF-1.7\n" + bytes(300), "a PDF document.*save a page of it as a PNG"),
    "logo.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing.*as a PNG"),
    "plain.svg": (b"<svg width='4'></svg>", "an SVG drawing"),
    "phone.heic": (ftyp(b"heic", b"mif1", b"heic"), "a HEIC .HEIF. file.*convert it to JPEG, or open it with pillow"),
    "phone.jpg": (ftyp(b"mif1", b"heic"), "a HEIC .HEIF. file"),
    "clip.mp4": (ftyp(b"isom", b"mp41"), "a video.*ffmpeg -i VIDEO -frames:v 1"),
    "clip.mov": (ftyp(b"qt  "), "a video"),
    "clip.webm": (b"\x1a\x45\xdf\xa3" + bytes(100), "a video"),
    "clip.avi": (b"RIFF\0\0\1\0AVI LIST" + bytes(100), "a video"),
    "photo.cr3": (ftyp(b"crx "), "a camera's raw file"),
    "notes.png": (b"shopping list\n" * 50, "a text file.*give the image itself"),
    "noten.png": ("Äpfel, Süßes\n".encode() * 700, "a text file"),
    "utf16.png": ("shopping list".encode("utf-16"), "a text file"),
    "result.jpg": (b'{"error": "not found"}', "a JSON text"),
    "photo.jpg": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page .HTML.*download the image again"),
    "feed.jpg": (b"<?xml version='1.0'?><error/>", "an XML or HTML text"),
    "pointer.jpg": (LFS, "not an image that is taken but a Git LFS pointer; run `git lfs pull`"),
    "empty.jpg": (b"", "empty.jpg is empty; get a whole copy"),
    "old.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "a JPEG 2000 file.*convert it"),
    "new.jxl": (b"\xff\x0a" + bytes(100), "a JPEG XL file"),
    "layers.psd": (b"8BPS\0\1" + bytes(100), "a Photoshop file"),
    "icon.ico": (encoded(random_image(16, 16), "ICO"), "an icon .ICO. file"),
    "icon.icns": (b"icns" + bytes(100), "an icon .ICNS. file"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(100), "a DICOM file"),
    "array.npy": (b"\x93NUMPY\1\0" + bytes(100), "a NumPy array.*numpy.load"),
    "photos.zip": (b"PK\3\4" + bytes(100), "an archive.*unpack it"),
    "sound.wav": (b"RIFF\0\0\1\0WAVEfmt " + bytes(100), "a sound file"),
    "film.tga": (encoded(OPAQUE, "TGA"), "not an image in a known format .JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF."),
    "noise.jpg": (bytes([7, 1, 200]) * 100, "not an image in a known format.*convert it to one of them"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_not_taken(tmp_path: Path, name: str) -> None:
    content, said = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert str(tmp_path) in message or message.startswith("...")
    assert re.search(said, message), message


def test_postscript_starts_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: started.append(args))
    for name, content in (
        ("photo.jpg", encoded(OPAQUE, "EPS")),
        ("photo.png", b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, 900, 0, 0, 0, 0, 65535) + encoded(OPAQUE, "EPS")),
        ("plain.ps", b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert "is not an image that is taken but a PostScript (EPS) file; save what it shows as a PNG" in refusal(
            tmp_path / name
        )
    assert started == []


def test_a_dds_texture_that_pillow_cannot_decode(tmp_path: Path) -> None:
    pixel_format = struct.pack("<2I", 32, 0x1234) + b"\0\0\0\0" + struct.pack("<5I", 0, 0, 0, 0, 0)
    (tmp_path / "a.jpg").write_bytes(b"DDS " + struct.pack("<7I44x", 124, 0, 4, 4, 0, 0, 0) + pixel_format + bytes(90))
    assert "is not an image that is taken but a DDS texture; convert it to JPEG or PNG" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", [name for name in TAKEN if not name.startswith(("several", "animated", "apng"))])
def test_cut_files(tmp_path: Path, name: str) -> None:
    data, tmp_path = made(name), tmp_path / ("long" * 50)
    tmp_path.mkdir()
    (tmp_path / "cut.dat").write_bytes(data[: len(data) * 2 // 5])
    message = refusal(tmp_path / "cut.dat")
    assert "cut.dat is a" in message
    assert message.endswith("it is damaged or of a rare kind: get a whole copy or save it as PNG")


@pytest.mark.parametrize("name", TAKEN)
def test_changed_bytes_give_an_image_or_a_sentence(tmp_path: Path, name: str) -> None:
    whole, chance = made(name), random.Random(name)
    for _ in range(60):
        data = bytearray(whole)
        what = chance.randrange(4)
        place = chance.randrange(len(data))
        if what == 0:
            del data[place : place + chance.randrange(1, 20)]
        elif what == 1:
            data[place:place] = chance.randbytes(chance.randrange(1, 10))
        else:
            for _ in range(chance.choice((1, 1, 3, 20))):
                data[chance.randrange(len(data))] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        (tmp_path / "a").write_bytes(data)
        said = "an image"
        try:
            assert load_image(tmp_path / "a").mode == "RGB"
        except InputError as error:
            said = str(error)
        assert len(said) < 300


@pytest.mark.parametrize(
    "error",
    [
        struct.error("bad char"), zlib.error("incorrect"), IndexError(), OverflowError("x"),
        NotImplementedError("flags"), MemoryError(), RecursionError("deep"), KeyError(4), AttributeError("x"),
        AssertionError(), ZeroDivisionError("0"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        OSError("odd"), EOFError(), Exception("l\n" * 900),
        Image.DecompressionBombError("Image size (9 pixels) exceeds limit of 4 pixels, could be an attack."),
    ],
)  # fmt: skip
def test_any_failure_of_the_decoder_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    OPAQUE.save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert "a.png" in refusal(tmp_path / "a.png")
    message = refusal(opened)
    assert message.startswith("the image")


def test_a_programmer_s_interrupt_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OPAQUE.save(tmp_path / "a.png")

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_image(tmp_path / "a.png")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any data."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"")


def test_sizes_that_would_fill_the_memory(tmp_path: Path) -> None:
    for side, said in ((10_000, "10000 x 10000 pixels, more than the 89,478,485"), (20_000, "is too large .*pixels")):
        (tmp_path / "a.png").write_bytes(png_header(side, side))
        message = refusal(tmp_path / "a.png")
        assert re.search(said, message)
        assert message.endswith("scale the image down first")
    with pytest.warns(Image.DecompressionBombWarning):
        opened = Image.open(io.BytesIO(png_header(10_000, 9_000)))
    assert refusal(opened).startswith("the image has 10000 x 9000 pixels, more than")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = random_array(31, 22)
    place = tmp_path / "some photos" / "größe 50%.png"
    place.parent.mkdir()
    OPAQUE.save(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place.parent)
    stray = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(stray)).write_bytes(place.read_bytes())
    data = place.read_bytes()
    for given in (
        str(place), place, place.name, "~/some photos/größe 50%.png", Path("~/some photos") / place.name,
        "file://" + quote(str(place)), "FILE://localhost" + quote(str(place)), f"file://{place}", Path(f"file://{place}"),
        "file:" + quote(str(place)), os.fsdecode(stray),
        "data:image/png;base64," + base64.b64encode(data).decode(),
        "data:;base64," + base64.b64encode(data).decode().rstrip("="), "data:image/png," + quote(data),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(load_image(given)), expected)


def test_paths_without_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file.png").write_bytes(encoded(OPAQUE, "PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for given, said in (
        (tmp_path / "nothing.jpg", "nothing.jpg does not exist; give the path of an image"),
        (tmp_path / "file.png" / "a.jpg", "a.jpg does not exist"),
        (tmp_path / "link.png", "link.png is a link to a file that does not exist"),
        (tmp_path / "loop.png", "loop.png cannot be opened (Too many levels of symbolic links)"),
        ("~/nothing.jpg", f"{tmp_path}/nothing.jpg does not exist"),
        (f"file://{tmp_path}/nothing.jpg", f"{tmp_path}/nothing.jpg does not exist"),
        ("file://server/share/a.jpg", "names a file of another machine"),
        (tmp_path, "is a folder; give the path of an image"),
        ("/dev/null", "/dev/null is a device"),
        ("", "the path of the image is empty"),
        ("https://example.com/cat.jpg", "https://example.com/cat.jpg is a URL, and images are not downloaded"),
        (Path("http://example.com/cat.jpg"), "is a URL"),
        ("s3://bucket/cat.jpg", "is a URL"),
        ("cat\0.jpg", r"cat\x00.jpg holds a zero byte"),
        ("line\nbreak.jpg", r"line\nbreak.jpg does not exist"),
        ("x" * 5000, "File name too long"),
        ("\ud800.jpg", "cannot be opened"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,a", "is not valid base64"),
        ("data:image/png;base64,§§§§", "is not valid base64"),
        ("data:image/png;base64,", "the data URL is empty"),
        ("data:text/plain,hello", "the data URL is not an image that is taken but a text file"),
    ):
        assert said in refusal(given)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OPAQUE.save(tmp_path / "a.png")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "a.png may not be read by this user; change its permissions" in refusal(tmp_path / "a.png")


def test_a_pipe(tmp_path: Path) -> None:
    for data in (encoded(OPAQUE, "TIFF", compression="tiff_lzw"), encoded(OPAQUE, "PNG")):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
        writer.start()
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "pipe")), np.asarray(OPAQUE))
        writer.join()
        (tmp_path / "pipe").unlink()


def test_images_of_the_caller(tmp_path: Path) -> None:
    """Any format that the caller has opened himself is taken, and left as it was."""
    image = Image.open(io.BytesIO(encoded(OPAQUE, "TGA")))
    np.testing.assert_array_equal(np.asarray(load_image(image)), np.asarray(OPAQUE))
    assert image.format == "TGA"
    OPAQUE.save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    assert "the image (mode RGB) cannot be read" in refusal(closed)
    cut = Image.open(io.BytesIO(encoded(OPAQUE, "PNG")[:900]))
    for _ in range(2):
        assert "give it as a file or in mode RGB" in refusal(cut)
