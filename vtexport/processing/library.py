"""A checkpoint's processor, as transformers itself chooses and makes it out of the checkpoint's files."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vtexport.errors import InputError, MissingDependencyError, quoted

_IMAGE_SETTINGS, _PROCESSOR = "preprocessor_config.json", "processor_config.json"

_T = TypeVar("_T")


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint: its image processor in the Pillow form, its tokenizer and its chat template.

    transformers has each image processor twice, for Pillow and for torchvision, and takes the second wherever
    torchvision is installed; their pixels differ. The Pillow form is what a bundle's runtime follows.

    Args:
        folder: The checkpoint. Nothing is fetched and no code that came with it is run.

    Returns:
        A `transformers.ProcessorMixin` with `image_processor` and `tokenizer`.

    Raises:
        InputError: The library finds no processor in these files, or cannot make it.
        MissingDependencyError: A package that these files need, such as sentencepiece, is not installed.
    """
    from transformers import AutoProcessor

    image_processor = load_image_processor(folder)

    def load() -> Any:
        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    processor = _asked(load, folder, "processor")
    # Given to AutoProcessor, `backend` would reach the tokenizer as well, which takes it for a setting of its own.
    if hasattr(processor, "image_processor"):
        processor.image_processor = image_processor
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:  # AutoProcessor takes what it finds, such as a tokenizer alone
            raise InputError(
                f"transformers makes a {type(processor).__name__} without {part.replace('_', ' ')} of {folder}; "
                "copy processor_config.json and preprocessor_config.json from the model's repository"
            )
    return processor


def load_image_processor(folder: Path) -> Any:
    """The image processor alone, in the Pillow form; arguments and errors as for `load_processor`."""
    file = image_settings_file(folder)
    if not file.is_file():  # of which the library speaks as of a model on the hub
        raise InputError(
            f"{folder} has no {file.name}, so it is not known how pixels are prepared; "
            "copy the file from the model's repository"
        )
    return _asked(lambda: _pillow_form(folder), folder, f"image processor ({file.name})")


def image_settings_file(folder: Path) -> Path:
    """The file that the library takes an image processor's settings from, for naming it."""
    try:
        inside = json.loads((folder / _PROCESSOR).read_text(encoding="utf-8")).get("image_processor")
    except (OSError, ValueError, AttributeError, RecursionError):
        inside = None
    return folder / (_PROCESSOR if inside is not None else _IMAGE_SETTINGS)


def load_torchvision_form(folder: Path) -> Any | None:
    """The image processor alone, in the form that transformers takes where torchvision is there; None without it."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        return None

    def load() -> Any:
        return AutoImageProcessor.from_pretrained(
            folder, backend="torchvision", local_files_only=True, trust_remote_code=False
        )

    return _asked(load, folder, "image processor's torchvision form")


def _pillow_form(folder: Path) -> Any:
    from transformers.image_processing_backends import TorchvisionBackend

    # Not from the top of the package: up to 5.6 that one is a stand-in which asks for torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    made = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    if isinstance(made, TorchvisionBackend):
        raise InputError(
            f"{folder} asks for {type(made).__name__}, which transformers has for torchvision alone; vtexport prepares "
            "images as the Pillow forms do and cannot follow it"
        )
    return made


def _asked(load: Callable[[], _T], folder: Path, what: str) -> _T:
    """The library's result, without what it says by the way; its exceptions as errors of ours."""
    try:
        with quiet():
            return load()
    except InputError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"transformers needs a further package for the {what} of {folder}: {quoted(error, folder)}; run pip "
            "install 'vtexport[export]'"
        ) from error
    except Exception as error:  # it raises whatever its readers of JSON and its constructors do
        said = str(error) or type(error).__name__
        if "trust_remote_code" in said:
            raise InputError(
                f"the {what} of {folder} is code that came with it (auto_map), and vtexport runs none; name a class of "
                "transformers in processor_config.json and preprocessor_config.json"
            ) from error
        said = quoted(said.replace(f"{folder}/", "").replace(str(folder), folder.name), folder)
        raise InputError(
            f"transformers cannot make the {what} of {folder} ({said}); correct its files or fetch them again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what transformers logs and warns of while files are read from the user; exceptions come through."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
