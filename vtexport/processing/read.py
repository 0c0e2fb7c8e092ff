"""Everything that transformers decides about a checkpoint's images, text and generation, read and checked at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from vtexport.bundle import manifest as schema
from vtexport.errors import InputError, cut
from vtexport.models.family import Family
from vtexport.models.parts import ModelSpec
from vtexport.processing.generation import read_generation
from vtexport.processing.image_processor import image_settings, told_otherwise
from vtexport.processing.library import image_settings_file, load_processor, load_torchvision_form
from vtexport.processing.self_check import (
    check_whole_processor,
    compare_ids,
    compare_pixels,
    compare_text,
    torchvision_levels,
)
from vtexport.processing.text import TextFiles, read_text_files
from vtexport.processing.tokenizer import load_tokenizer
from vtexport.runtime.prompt import PromptReader

_SMALL_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "processor_config.json", "chat_template.json",
    "chat_template.jinja",
)  # fmt: skip
# Until the weights have their place; nothing that reads prompts looks at it.
_NO_EMBEDDING = schema.StoredTensor(file="", offset=0, shape=[1, 1], dtype="float32")


@dataclass(frozen=True)
class Processing:
    """A checkpoint's small files as the bundle has them, held to transformers by the self-check.

    `text` is without the place of the embedding, which `with_embedding` adds.
    """

    image: schema.Image
    files: TextFiles
    text: schema.Text
    generation: schema.Generation
    self_check: schema.SelfCheck

    def with_embedding(self, embedding: schema.StoredTensor) -> schema.Text:
        """The manifest's description of text, with the place of the token embedding."""
        return msgspec.structs.replace(self.text, embedding=embedding)


def read_processing(
    folder: Path, family: Family, config: Any, spec: ModelSpec, note: Callable[[str], None]
) -> Processing:
    """Read and check what `folder` says about images, text and generation.

    Args:
        folder: the checkpoint's small files.
        family: of the model.
        config: transformers' configuration object.
        spec: of the model.
        note: gets a sentence for everything that a user may not expect.

    Raises:
        InputError: a file is missing or damaged, or the runtime does not do what the library does with it.
        UsageError: the files ask for something that the runtime does not do.
        MissingDependencyError: the tokenizer takes a package that is not installed.
    """
    _check_files(folder)
    tokenizer = load_tokenizer(folder)
    processor = load_processor(folder)
    processor.tokenizer = tokenizer
    image = image_settings(processor.image_processor, spec.vision.image_size, str(image_settings_file(folder)))
    if (otherwise := told_otherwise(folder, image, spec.vision.image_size)) is not None:
        note(otherwise)
    files = read_text_files(folder, tokenizer, spec.image_token_id, family.chat_template)
    for each in files.notes:
        note(each)
    generation, eos_token_ids = read_generation(folder, config, note)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos_token_ids:
        shown = cut(", ".join(map(str, eos_token_ids)), 60)
        note(
            f"the tokenizer's end token {cut(repr(tokenizer.eos_token), 60)} ({tokenizer.eos_token_id}) is none of "
            f"those that generation ends at ({shown}); the bundle ends where transformers does"
        )
    text = schema.Text(
        image_token=files.image_token,
        image_token_id=spec.image_token_id,
        bos_token=files.bos_token,
        special_tokens=files.special_tokens,
        chat_template_source=files.chat_template.source,
        part_roles=files.chat_template.part_roles,
        eos_token_ids=list(eos_token_ids),
        embedding=_NO_EMBEDDING,
    )
    images = compare_pixels(processor.image_processor, image)
    check_whole_processor(processor, text.image_token)
    with TemporaryDirectory(prefix="vtexport-") as temporary:
        files.write(Path(temporary))
        reader = PromptReader.from_files(text, Path(temporary) / text.tokenizer, Path(temporary) / text.chat_template)
        conversations = compare_ids(
            reader, processor, text, files.chat_template, spec.vision.tokens, note, spec.images_per_prompt
        )
        compare_text(reader, tokenizer, note)
    form = load_torchvision_form(folder)
    levels = torchvision_levels(form, image) if form is not None else None
    check = schema.SelfCheck(images=images, conversations=conversations, torchvision_levels=levels)
    return Processing(image, files, text, generation, check)


def _check_files(folder: Path) -> None:
    """Refuses what has a file's name alone, such as a link into nowhere, and which transformers takes for missing."""
    for path in (folder / name for name in _SMALL_FILES):
        if os.path.lexists(path) and not path.is_file():
            what = "a folder" if path.is_dir() else "a link to a file that does not exist" if path.is_symlink() else ""
            raise InputError(f"{path} is {what or 'no file'}; put the file there, or take that away")
