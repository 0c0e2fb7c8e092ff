"""The steps of image processors, asked from transformers' objects for every way in which files can name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_llava import image_files
from text_checkpoint import write_text_checkpoint

from vtexport.bundle.manifest import Image
from vtexport.errors import InputError, UsageError
from vtexport.processing.image_processor import image_settings, told_otherwise
from vtexport.processing.library import load_processor
from vtexport.processing.self_check import compare_pixels

SETTINGS = image_files()["preprocessor_config.json"]
INSIDE = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2}


def settings_of(folder: Path, image_size: int = 112) -> Image:
    return image_settings(load_processor(folder).image_processor, image_size, "the checkpoint")


def written(folder: Path, **changes: Any) -> Path:
    """A checkpoint's small files whose preprocessor_config.json has these fields; ... takes one away."""
    fields = {name: value for name, value in {**SETTINGS, **changes}.items() if value is not ...}
    return write_text_checkpoint(folder, **{"preprocessor_config__json": fields})


def test_the_hubs_own(tmp_path: Path) -> None:
    assert settings_of(written(tmp_path)) == Image(
        processor="CLIPImageProcessor",
        resize_shortest=112,
        crop_height=112,
        crop_width=112,
        resample="bicubic",
        rescale=SETTINGS["rescale_factor"],
        mean=SETTINGS["image_mean"],
        std=SETTINGS["image_std"],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_processor_type": "CLIPImageProcessorFast"},
        {"image_processor_type": ..., "feature_extractor_type": "CLIPFeatureExtractor"},
        {"image_processor_type": ...},
        {"size": 112, "crop_size": 112},
        {"size": {"height": 112, "width": 112}, "do_center_crop": False},
        {"size": {"height": 120, "width": 130}},
        {"size": {"shortest_edge": 60}},  # smaller than the crop: black borders
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"do_convert_rgb": False},
        {"do_pad": True},  # left from LLaVA's own processor; CLIP's pads a batch of equal images by nothing
        {"resample": 0},
        {"resample": 1},
        {"image_mean": 0.5, "image_std": 0.25},
        {"rescale_factor": 1 / 127.5},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": False},
        {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True, "image_mean": [0.1, 0.7, 0.9]},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_center_crop": False},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"height": 112, "width": 112}},
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 112, "width": 112}, "do_center_crop": ...},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 112, "width": 112}, "do_center_crop": ...},
    ],
)
def test_pixels_are_the_librarys(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = written(tmp_path, **changes)
    processor = load_processor(folder).image_processor
    assert compare_pixels(processor, image_settings(processor, 112, "x")) == ["opaque", "transparent", "grey"]


def test_a_step_that_is_lost_is_found(tmp_path: Path) -> None:
    processor = load_processor(written(tmp_path)).image_processor
    settings = image_settings(processor, 112, "x")
    processor.image_mean = [0.48145466, 0.4578275, 0.4082]
    with pytest.raises(InputError, match=r"pixels of the opaque sample image .* differ .* by up to .*nothing is built"):
        compare_pixels(processor, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 98, "width": 98}}, r"pixels of 98 x 98, and the vision tower takes 112 x 112"),
        ({"do_center_crop": False}, r"pixels whose size changes from image to image"),
        ({"size": {"shortest_edge": 112, "longest_edge": 200}}, r"size \{'shortest_edge': 112, 'longest_edge': 200\}"),
        ({"size": {"max_height": 112, "max_width": 112}}, r"size \{'max_height'"),
        ({"resample": 9}, "resample"),
        ({"image_std": [0.2, 0.0, 0.2]}, "none of image_std 0"),
        ({"image_mean": [0.2, 0.1]}, "three numbers each"),
        ({"image_mean": ["a", "b", "c"]}, "three numbers each"),
        ({"image_std": [float("nan"), 0.2, 0.2]}, "three numbers each"),
        ({"image_mean": [0.5] * 10_000}, "three numbers each"),
        ({"rescale_factor": None}, "rescale_factor None"),
        ({"rescale_factor": "0.0039"}, "rescale_factor '0.0039'"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"resample": "bicubic"}, "resample 'bicubic'"),
        ({"size": {"shortest_edge": "112"}}, "whole pixels"),
        ({"size": {"shortest_edge": 112.5}}, "whole pixels"),
        ({"size": {"shortest_edge": -5}}, "whole pixels"),
        ({"do_pad": True, "pad_size": {"height": 150, "width": 150}}, "pad_size"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True, "image_mean": [1.5, 0, 0]}, "from 0 to 1"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor.* has steps of its own"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor.* has steps of its own"),
    ],
)
def test_what_the_runtime_does_not_do_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message) as caught:
        settings_of(written(tmp_path, **changes))
    assert len(str(caught.value)) < 400


def test_inside_the_processors_file_it_counts_before_a_file_of_its_own(tmp_path: Path) -> None:
    processor = {**image_files()["processor_config.json"], "image_processor": {**SETTINGS, **INSIDE}}
    folder = write_text_checkpoint(tmp_path, **{"processor_config__json": processor})
    found = settings_of(folder)
    assert (found.mean, found.std, found.resample) == (INSIDE["image_mean"], INSIDE["image_std"], "bilinear")
    (folder / "preprocessor_config.json").unlink()
    assert settings_of(folder) == found


def test_two_files_that_describe_images_differently_are_told(tmp_path: Path) -> None:
    processor = {**image_files()["processor_config.json"], "image_processor": {**SETTINGS, **INSIDE}}
    folder = write_text_checkpoint(tmp_path, **{"processor_config__json": processor})
    note = told_otherwise(folder, settings_of(folder), 112)
    assert note == (
        "preprocessor_config.json describes images with another resample, mean, std; the image processor inside "
        "processor_config.json is taken, as transformers does"
    )


@pytest.mark.parametrize(
    ("stale", "said"),
    [
        ({**SETTINGS, **INSIDE, "size": 112, "crop_size": 112, "processor_class": "Other"}, None),  # the same pixels
        (None, None),
        ({**SETTINGS, **INSIDE, "crop_size": {"height": 98, "width": 98}}, "gives no pixels for this model"),
        ({**SETTINGS, **INSIDE, "image_processor_type": "LlavaImageProcessor", "do_pad": True}, "pad_to_square"),
    ],
)
def test_only_files_that_change_pixels_are_told(tmp_path: Path, stale: dict[str, Any] | None, said: str | None) -> None:
    processor = {**image_files()["processor_config.json"], "image_processor": {**SETTINGS, **INSIDE}}
    folder = write_text_checkpoint(
        tmp_path, **{"processor_config__json": processor, "preprocessor_config__json": stale}
    )
    note = told_otherwise(folder, settings_of(folder), 112)
    assert (note is None) if said is None else (said in str(note))
    assert told_otherwise(written(tmp_path / "hub"), settings_of(written(tmp_path / "hub")), 112) is None


def test_no_settings_for_images(tmp_path: Path) -> None:
    folder = write_text_checkpoint(tmp_path, **{"preprocessor_config__json": None})
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, so it is not known how pixels"):
        load_processor(folder)


def test_settings_are_numbers_of_python(tmp_path: Path) -> None:
    """They go into JSON as they are."""
    found = settings_of(written(tmp_path))
    assert json.loads(json.dumps(found.mean)) == found.mean
    assert not isinstance(found.rescale, np.generic)
