"""The other side of a proof: the checkpoint as transformers itself loads it, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtexport.assemble.describe import describe_source, hash_small_files
from vtexport.assemble.weights import named_if_it_vanishes
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.reader import Bundle
from vtexport.checkpoint.readable import readable_folder
from vtexport.checkpoint.resolve import Checkpoint, locate, open_weights
from vtexport.errors import InputError, MissingDependencyError, UsageError, quoted
from vtexport.processing.library import load_processor, quiet
from vtexport.processing.self_check import library_ids, library_pixels, on_white
from vtexport.processing.text import read_text_files
from vtexport.processing.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Prompt:
    """One question as transformers tokenises it.

    Attributes:
        text: As it was asked.
        before, after: [P], [Q] int64 ids around the image.
        question: [M] int64 ids of the text alone, without special tokens.
    """

    text: str
    before: np.ndarray
    after: np.ndarray
    question: np.ndarray


def check_torch() -> None:
    """Refuses to begin without PyTorch.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "a proof is what PyTorch answers, and PyTorch is not installed; run pip install 'vtexport[export,pytorch]'"
        )


def find_checkpoint(
    bundle: Bundle,
    model: str | None,
    cache_dir: Path | None,
    note: Callable[[str], None],
    progress: Callable[[int], object] = lambda count: None,
) -> Checkpoint:
    """The checkpoint that a bundle was made of, every file of it hashed and compared.

    Args:
        bundle: what it was made into.
        model: an alias, a hub id or a folder; the bundle's own source when None. Random weights are written again.
        cache_dir: for random weights.
        note: gets sentences for the user.
        progress: called with each count of bytes read.

    Raises:
        UsageError: it is another checkpoint, or there is none of that name.
        InputError: it cannot be read.
    """
    source = bundle.manifest.source
    located = locate(model or source.requested, weights=source.weights, seed=source.seed or 0, notify=note)
    checkpoint = open_weights(located, cache_dir=cache_dir, notify=note)
    known = set(source.files.values())
    small = hash_small_files(checkpoint.folder)
    # Before the weights: of most others these are not the same, and they are read at once
    _check_same(bundle, checkpoint, {name: digest for name, digest in small.items() if digest not in known})
    with named_if_it_vanishes():
        weights = {path.name: hash_file(path, progress) for path in checkpoint.weight_files}
    files = describe_source(checkpoint, weights).files
    _check_same(bundle, checkpoint, {name: digest for name, digest in files.items() if digest not in known})
    if known - set(files.values()):
        gone = next(name for name, digest in source.files.items() if digest not in files.values())
        _check_same(bundle, checkpoint, {gone: ""})
    return checkpoint


def _check_same(bundle: Bundle, checkpoint: Checkpoint, differing: dict[str, str]) -> None:
    if differing:
        raise UsageError(
            f"{checkpoint.folder} is not the checkpoint that {bundle.folder} was made of "
            f"({bundle.manifest.source.id}: {min(differing)} differs); give that one with --checkpoint"
        )


class Reference:
    """transformers' model and processor of one checkpoint.

    Args:
        checkpoint: from `find_checkpoint`.
        tokens: visual tokens of an image before pruning.

    Raises:
        InputError: transformers cannot load it.
        MissingDependencyError: a package is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: int):
        import torch
        from transformers import AutoModelForImageTextToText

        self.tokens = tokens
        self._image_token_id = int(checkpoint.config.image_token_index)
        with readable_folder(checkpoint.folder) as folder:
            tokenizer = load_tokenizer(folder)
            self.processor = load_processor(folder)
            self.processor.tokenizer = tokenizer
            texts = read_text_files(folder, tokenizer, self._image_token_id, checkpoint.family.chat_template)
            self._template = texts.chat_template.text
            self._image_token = texts.image_token
        try:
            with quiet():
                self.model: Any = AutoModelForImageTextToText.from_pretrained(
                    checkpoint.folder,
                    config=copy.deepcopy(checkpoint.config),
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                ).eval()
        except Exception as error:  # it raises whatever its readers do
            raise InputError(
                f"transformers cannot load the weights of {checkpoint.folder} "
                f"({quoted(error, checkpoint.folder)}), so there is nothing to prove the bundle by"
            ) from error

    def pixels(self, image: Image.Image, what: str) -> np.ndarray:
        """`pixel_values` [1, 3, H, W] float32 of transformers' image processor in its Pillow form.

        Raises:
            InputError: it cannot prepare the image.
        """
        return library_pixels(self.processor.image_processor, on_white(image), what)

    def prompt(self, text: str, image: Image.Image) -> Prompt:
        """A question's ids, by transformers' tokenizer and the template that the bundle has.

        Raises:
            UsageError: the text is empty or holds the image's placeholder.
            InputError: they cannot be made.
        """
        if not text.strip() or self._image_token in text:
            raise UsageError(f"the prompt {text!r} is empty or holds {self._image_token}; ask something")
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        ids, _ = library_ids(self.processor, messages, image, self._image_token_id, self._template)
        at = ids.index(self._image_token_id)
        tokenizer = self.processor.tokenizer
        special = set(tokenizer.all_special_ids)
        own = [each for each in tokenizer(text, add_special_tokens=False)["input_ids"] if each not in special]
        before, after, question = (np.asarray(each, np.int64) for each in (ids[:at], ids[at + 1 :], own))
        return Prompt(text, before, after, question)

    def input_ids(self, prompt: Prompt) -> np.ndarray:
        """[1, L] int64: the whole prompt, with a placeholder for every visual token before pruning."""
        placeholders = np.full(self.tokens, self._image_token_id, np.int64)
        return np.concatenate([prompt.before, placeholders, prompt.after])[None]

