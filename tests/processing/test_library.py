"""Processors as transformers chooses them, with the image processor in its Pillow form."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_llava import add_text_files, make_config
from transformers import AutoProcessor, LlavaProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vtexport.errors import InputError, MissingDependencyError
from vtexport.processing.library import load_image_processor, load_processor, quiet

OWN_CODE = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "code.Own"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without its weights."""
    make_config().save_pretrained(tmp_path)
    add_text_files(tmp_path)
    return tmp_path


def change(path: Path, **settings: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    stored = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))


# Names of all three times: today's, those of "fast" and "slow" processors, and feature extractors
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessorPil"),
        ({"image_processor_type": "CLIPImageProcessorFast"}, "CLIPImageProcessorPil"),
        ({"image_processor_type": "CLIPImageProcessorPil"}, "CLIPImageProcessorPil"),
        ({"image_processor_type": "LlavaImageProcessor"}, "LlavaImageProcessorPil"),
        ({"image_processor_type": "LlavaImageProcessorFast"}, "LlavaImageProcessorPil"),
        ({"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"}, "CLIPImageProcessorPil"),
        ({"image_processor_type": None}, "LlavaImageProcessorPil"),  # by the model's type
    ],
)
def test_pillow_form_by_every_name(folder: Path, settings: dict[str, Any], expected: str) -> None:
    change(folder / "preprocessor_config.json", **settings)
    processor = load_processor(folder)
    assert isinstance(processor, LlavaProcessor)
    assert type(processor.image_processor).__name__ == type(load_image_processor(folder)).__name__ == expected
    assert processor.tokenizer.backend == "tokenizers"


def test_it_does_what_the_library_does(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    asked: dict[str, Any] = {"images": Image.fromarray(noise), "text": "USER: <image>\nhm?", "return_tensors": "np"}
    ours, theirs = load_processor(folder)(**asked), AutoProcessor.from_pretrained(folder)(**asked)
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_settings_inside_the_processors_file_come_first(folder: Path) -> None:
    """As transformers 5 saves them; a preprocessor_config.json beside them is an old one that was left."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    change(folder / "processor_config.json", image_processor={**settings, "image_mean": [0.5, 0.25, 0.125]})
    assert list(load_processor(folder).image_processor.image_mean) == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("preprocessor_config.json", "{", "not a valid JSON file"),
        ("preprocessor_config.json", '{"image_processor_type": "NoSuchProcessor"}', "Unrecognized image processor"),
        ("preprocessor_config.json", '{"image_processor_type": 3}', "'int' object"),
        ("preprocessor_config.json", json.dumps(OWN_CODE), "vtexport runs none; name a class"),
        ("preprocessor_config.json", None, "Can't load image processor"),
        ("processor_config.json", "[]", "'list' object"),
        ("processor_config.json", '{"processor_class": "NoSuchProcessor"}', "without image processor"),
        ("tokenizer_config.json", "{", "Expecting property name"),
        ("tokenizer.json", None, "Couldn't instantiate the backend tokenizer"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(folder: Path, file: str, text: str | None, said: str) -> None:
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(InputError) as caught:
        load_processor(folder)
    sentence = str(caught.value)
    assert said in sentence
    assert str(folder) in sentence
    assert len(sentence) - len(str(folder)) < 300
    assert "\n" not in sentence


def test_a_processor_for_torchvision_alone_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.image_processing_backends import TorchvisionBackend

    class ForTorchvision(TorchvisionBackend):
        def __init__(self) -> None: ...

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda *given, **options: ForTorchvision())
    with pytest.raises(InputError, match="asks for ForTorchvision, which transformers has for torchvision alone"):
        load_processor(folder)


def test_a_missing_package_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*given: Any, **options: Any) -> Any:
        raise ImportError("requires the SentencePiece library but it was not found in your environment.")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", lacking)
    with pytest.raises(MissingDependencyError, match="requires the SentencePiece library"):
        load_processor(folder)


def test_nothing_is_said_by_the_way(folder: Path, capfd: Any, recwarn: pytest.WarningsRecorder) -> None:
    change(folder / "preprocessor_config.json", use_fast=True, image_processor_type="CLIPImageProcessorFast")
    load_processor(folder)
    out, err = capfd.readouterr()
    assert (out, err, list(recwarn)) == ("", "", [])


def test_what_the_library_logs_otherwise_stays_as_it_was() -> None:
    from transformers.utils import logging as theirs

    before, logger = theirs.get_verbosity(), logging.getLogger("transformers")
    with contextlib.suppress(RuntimeError), quiet():
        assert not logger.isEnabledFor(logging.ERROR)
        warnings.warn("not seen", stacklevel=1)
        raise RuntimeError
    assert theirs.get_verbosity() == before
