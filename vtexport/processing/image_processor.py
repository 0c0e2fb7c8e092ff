"""The steps of a checkpoint's image processor, read from the object that transformers makes of its files."""

from __future__ import annotations

import math
from typing import Any

from vtexport.bundle import manifest as schema
from vtexport.errors import BundleError, UsageError, cut
from vtexport.runtime.images import output_size

# PIL.Image.Resampling, as preprocessor_config.json stores it
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_BILINEAR = 2  # what transformers' Pillow form takes where a processor names none
_BACKEND_SUFFIXES = ("Pil", "Fast")
# Processors whose own steps are known here; every other one may only use those of transformers' common Pillow form.
_KNOWN_OVERRIDES = {"LlavaImageProcessor": {"pad_to_square", "_preprocess"}}


def image_settings(processor: Any, image_size: int, where: str) -> schema.Image:
    """What an image processor does to pixels, as the manifest has it.

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

    if not _has_common_steps(processor, name):
        raise refuse("steps of its own", "processors that resize, crop, rescale and normalise, and LlavaImageProcessor")
    mean, std = _channels(processor, "image_mean"), _channels(processor, "image_std")
    pads = name == "LlavaImageProcessor" and bool(processor.do_pad)
    if not processor.do_normalize:
        colour, mean, std = [int(255 * each) for each in mean or [0.0] * 3], [0.0] * 3, [1.0] * 3
    else:
        if mean is None or std is None or not all(std):
            shown = f"image_mean {processor.image_mean!r} and image_std {processor.image_std!r}"
            raise refuse(shown, "three numbers each, none of image_std 0")
        colour = [int(255 * each) for each in mean]
    resample = _BILINEAR if processor.resample is None else processor.resample
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise refuse(f"resample {processor.resample!r}", ", ".join(map(str, _RESAMPLE)))
    rescale = processor.rescale_factor if processor.do_rescale else 1.0
    if not _is_number(rescale) or not rescale:
        raise refuse(f"rescale_factor {rescale!r}", "a number other than 0")
    size = _sizes(processor.size) if processor.do_resize else {}
    if processor.do_resize and set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise refuse(f"size {size}", "a shortest_edge, or height and width")
    crop = _sizes(processor.crop_size) if processor.do_center_crop else {}
    if processor.do_center_crop and set(crop) != {"height", "width"}:
        raise refuse(f"crop_size {crop}", "height and width")
    settings = schema.Image(
        processor=name,
        pad_to_square=colour if pads else None,
        resize_shortest=size.get("shortest_edge"),
        resize_height=size.get("height"),
        resize_width=size.get("width"),
        resample=_RESAMPLE[int(resample)],  # type: ignore[arg-type]
        crop_height=crop.get("height"),
        crop_width=crop.get("width"),
        rescale=float(rescale),
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


def class_name(processor: Any) -> str:
    """The processor's class without the suffix of its backend: `CLIPImageProcessor`."""
    name = type(processor).__name__
    for suffix in _BACKEND_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _has_common_steps(processor: Any, name: str) -> bool:
    """Whether nothing but the constructor differs from the Pillow form that transformers' processors have in common."""
    from transformers.image_processing_backends import PilBackend

    classes = type(processor).__mro__
    if PilBackend not in classes:
        return False
    own: set[str] = set()
    for each in classes[: classes.index(PilBackend)]:
        own |= {attribute for attribute, value in vars(each).items() if callable(value) or isinstance(value, property)}
    own -= {attribute for attribute in own if attribute.startswith("__")} | {"valid_kwargs"}
    return own <= _KNOWN_OVERRIDES.get(name, set())


def _sizes(size: Any) -> dict[str, int]:
    """The sides that a transformers SizeDict or a plain dictionary sets."""
    names = ("shortest_edge", "longest_edge", "height", "width", "max_height", "max_width", "min_pixels", "max_pixels")
    found = {name: size.get(name) if isinstance(size, dict) else getattr(size, name, None) for name in names}
    return {name: int(value) for name, value in found.items() if value is not None}


def _channels(processor: Any, field: str) -> list[float] | None:
    value = getattr(processor, field)
    if _is_number(value):
        return [float(value)] * 3
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value)):
        return [float(each) for each in value]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
