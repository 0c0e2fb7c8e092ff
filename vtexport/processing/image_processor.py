"""The steps of a checkpoint's image processor, read from the object that transformers makes of its files."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from vtexport.bundle import manifest as schema
from vtexport.errors import BundleError, InputError, UsageError, cut
from vtexport.processing.library import image_settings_file, load_image_processor
from vtexport.runtime.images import output_size

# PIL.Image.Resampling, as preprocessor_config.json stores it
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_BILINEAR = 2  # what transformers' Pillow form takes where a processor names none
_OWN_FILE, _CONFIG_FILE = "preprocessor_config.json", "config.json"
_BACKEND_SUFFIXES = ("Pil", "Fast")
# Processors whose own steps are known here; every other one may only use those of transformers' common Pillow form.
_KNOWN_OVERRIDES = {"LlavaImageProcessor": {"pad_to_square", "_preprocess"}}


def image_settings(processor: Any, image_size: int, where: str) -> schema.Image:
    """Steps of an image processor, as the manifest has them.

    Args:
        processor: transformers' image processor in its Pillow form.
        image_size: height and width that the vision tower takes.
        where: the file of its settings, for messages.

    Raises:
        UsageError: it has steps that the device runtime does not do, or gives pixels of another size.
    """
    name = class_name(processor)

    def refuse(what: str, takes: str) -> UsageError:
        return UsageError(
            f"the image processor of {where} ({name}) has {cut(what, 120)}, which vtexport does not do; "
            f"it takes {takes}"
        )

    def shown(*fields: str) -> str:
        return " and ".join(f"{field} {cut(repr(getattr(processor, field, None)), 60)}" for field in fields)

    if not _has_common_steps(processor, name):
        raise refuse("steps of its own", "processors that resize, crop, rescale and normalise, and LlavaImageProcessor")
    pads = name == "LlavaImageProcessor" and bool(processor.do_pad)
    if not pads and getattr(processor, "do_pad", None) and _sizes(getattr(processor, "pad_size", None)):
        raise refuse(shown("pad_size"), "no border, or LlavaImageProcessor's, which makes a square")
    mean, std = _channels(processor, "image_mean"), _channels(processor, "image_std")
    colour = [int(255 * each) for each in mean or [0.0] * 3]
    if not processor.do_normalize:
        mean, std = [0.0] * 3, [1.0] * 3
    elif mean is None or std is None or not all(std):
        raise refuse(shown("image_mean", "image_std"), "three numbers each, none of image_std 0")
    if pads and not all(0 <= level <= 255 for level in colour):
        raise refuse(shown("image_mean"), "three numbers from 0 to 1, because its square has their colour")
    rescale = _number(processor.rescale_factor) if processor.do_rescale else 1.0
    if not rescale:
        raise refuse(shown("rescale_factor"), "a number that is not 0")
    resample = _BILINEAR if processor.resample is None else processor.resample
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise refuse(shown("resample"), ", ".join(map(str, _RESAMPLE)))
    size = _sizes(processor.size) if processor.do_resize else {}
    if processor.do_resize and (set(size) not in ({"shortest_edge"}, {"height", "width"}) or not _whole(size)):
        raise refuse(f"size {cut(str(size), 60)}", "a shortest_edge, or height and width, in whole pixels")
    crop = _sizes(processor.crop_size) if processor.do_center_crop else {}
    if processor.do_center_crop and (set(crop) != {"height", "width"} or not _whole(crop)):
        raise refuse(f"crop_size {cut(str(crop), 60)}", "height and width in whole pixels")
    settings = schema.Image(
        processor=name,
        pad_to_square=colour if pads else None,
        resize_shortest=size.get("shortest_edge"),
        resize_height=size.get("height"),
        resize_width=size.get("width"),
        resample=_RESAMPLE[int(resample)],  # type: ignore[arg-type]
        crop_height=crop.get("height"),
        crop_width=crop.get("width"),
        rescale=rescale,
        mean=mean,
        std=std,
    )
    try:
        height, width = output_size(settings)
        given = f"pixels of {height} x {width}"
    except BundleError:
        height, width, given = 0, 0, "pixels whose size changes from image to image"
    if (height, width) != (image_size, image_size):
        raise UsageError(
            f"the image processor of {where} ({name}) gives {given}, and the vision tower takes {image_size} x "
            f"{image_size}; correct size and crop_size, or fetch config.json and the processor's file again together"
        )
    return settings


def told_otherwise(folder: Path, settings: schema.Image, image_size: int) -> str | None:
    """A sentence where the checkpoint's two files describe images differently, of which transformers took one.

    Args:
        folder: the checkpoint.
        settings: of the image processor that transformers chose among its files.
        image_size: as for `image_settings`.
    """
    taken = image_settings_file(folder).name
    if taken == _OWN_FILE or not (folder / _OWN_FILE).is_file():
        return None
    with TemporaryDirectory(prefix="vtexport-") as temporary:
        for name in (_OWN_FILE, _CONFIG_FILE):
            if (folder / name).is_file():
                (Path(temporary) / name).write_bytes((folder / name).read_bytes())
        try:
            alone = image_settings(load_image_processor(Path(temporary)), image_size, str(folder))
        except (InputError, UsageError):
            what = "an image processor that gives no pixels for this model"
        else:
            one, other = msgspec.structs.asdict(settings), msgspec.structs.asdict(alone)
            differing = [name for name in one if one[name] != other[name]]
            if not differing:
                return None
            what = f"images with another {', '.join(differing)}"
    return f"{_OWN_FILE} describes {what}; the image processor inside {taken} is taken, as transformers does"


def class_name(processor: Any) -> str:
    """The processor's class without the suffix of its backend: `CLIPImageProcessor`."""
    name = type(processor).__name__
    for suffix in _BACKEND_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _has_common_steps(processor: Any, name: str) -> bool:
    """True where only the constructor differs from the Pillow form that transformers' processors have in common."""
    from transformers.image_processing_backends import PilBackend

    classes = type(processor).__mro__
    if PilBackend not in classes:
        return False
    own: set[str] = set()
    for each in classes[: classes.index(PilBackend)]:
        own |= {attribute for attribute, value in vars(each).items() if callable(value) or isinstance(value, property)}
    own -= {attribute for attribute in own if attribute.startswith("__")} | {"valid_kwargs"}
    return own <= _KNOWN_OVERRIDES.get(name, set())


def _sizes(size: Any) -> dict[str, Any]:
    """The sides that a transformers SizeDict or a plain dictionary sets."""
    names = ("shortest_edge", "longest_edge", "height", "width", "max_height", "max_width", "min_pixels", "max_pixels")
    found = {name: size.get(name) if isinstance(size, dict) else getattr(size, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _whole(sizes: dict[str, Any]) -> bool:
    return all(type(value) is int and value > 0 for value in sizes.values())


def _channels(processor: Any, field: str) -> list[float] | None:
    """Three finite numbers, or None where the field has anything else."""
    value = getattr(processor, field)
    values = value if _number(value) is None else [value] * 3
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    numbers = [_number(each) for each in values]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _number(value: Any) -> float | None:
    """A finite number as a float, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
