"""Everything that transformers decides about a checkpoint's images, text and generation, read and checked at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from vtexport.bundle import manifest as schema
from vtexport.models.spec import ModelSpec
from vtexport.processing.generation import read_generation
from vtexport.processing.image_processor import image_settings
from vtexport.processing.library import load_processor, load_torchvision_processor
from vtexport.processing.self_check import compare_ids, compare_pixels, torchvision_levels
from vtexport.processing.text import TextFiles, read_text_files


@dataclass(frozen=True)
class Processing:
    """What a checkpoint's small files come to, held to transformers by the self-check."""

    image: schema.Image
    text: TextFiles
    eos_token_ids: tuple[int, ...]
    generation: schema.Generation
    self_check: schema.SelfCheck


def read_processing(
    folder: Path, family: ModuleType, config: Any, spec: ModelSpec, note: Callable[[str], object]
) -> Processing:
    """Reads and checks what `folder` says about images, text and generation.

    Args:
        folder: the checkpoint's small files.
        family: the module of the model's family.
        config: transformers' configuration object.
        spec: of the model.
        note: gets a sentence for everything that a user may not expect.

    Raises:
        InputError: a file is missing or damaged, or the runtime does not do what the library does with it.
        UsageError: the files ask for something that the runtime does not do.
        MissingDependencyError: the tokenizer takes a package that is not installed.
    """
    text = read_text_files(folder, spec.image_token_id, family.CHAT_TEMPLATE)
    for each in text.notes:
        note(each)
    eos_token_ids, generation = read_generation(folder, config, spec.decoder.vocabulary, note)
    processor = load_processor(folder)
    image = image_settings(processor.image_processor, spec.vision.image_size, str(folder))
    check = self_check(folder, processor, image, text, spec, note)
    return Processing(image, text, eos_token_ids, generation, check)
