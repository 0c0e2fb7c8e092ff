"""Tokenizer and chat template of a checkpoint, as files that the device runtime reads by itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import TEMPLATE_NAME, TOKENIZER_NAME
from vtexport.errors import InputError
from vtexport.processing.chat_template import ChatTemplate, choose_chat_template
from vtexport.processing.tokenizer import disagreements, special_tokens

_COPIED = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json")
_NO_LIMIT = 10**18  # transformers writes 1e30 for a tokenizer without a longest text


@dataclass(frozen=True)
class TextFiles:
    """Text settings of a bundle's files and manifest, read from a checkpoint and not yet written.

    `tokenizer` is the whole tokenizer.json that transformers makes of the checkpoint's files.
    """

    image_token: str
    bos_token: str | None
    special_tokens: dict[str, str | list[str]]  # transformers' special_tokens_map
    tokenizer: str
    chat_template: ChatTemplate
    notes: list[str]  # sentences about what the checkpoint's files disagree on, lack, or ask for in vain

    def write(self, folder: Path) -> None:
        """Write tokenizer.json and chat_template.jinja into `folder`."""
        (folder / TOKENIZER_NAME).write_text(self.tokenizer, encoding="utf-8")
        # As it is, also its line ends: a template may write them
        (folder / TEMPLATE_NAME).write_text(self.chat_template.text, encoding="utf-8", newline="")


def copy_settings(checkpoint: Path, folder: Path) -> None:
    """Copy the checkpoint's own settings into `folder`, for people and for other tools; the runtime reads none."""
    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)


def read_text_files(source: Path, tokenizer: Any, image_token_id: int, familys_own: str | None) -> TextFiles:
    """Read what transformers makes of the tokenizer's and the chat template's files in `source`.

    A checkpoint with a SentencePiece model alone gets a tokenizer.json, too, and special tokens are as transformers
    sets them.

    Args:
        source: the checkpoint's folder.
        tokenizer: what `vtexport.processing.tokenizer.load_tokenizer` makes of it; texts are no longer cut or padded.
        image_token_id: of the configuration.
        familys_own: the family's chat template, for checkpoints without one that can carry an image.

    Raises:
        InputError: the tokenizer does not know the image token, or no template fits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer in {source} has no tokenizer.json form; convert it with transformers and save it"
        )
    image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    if image_token is None or tokenizer(image_token, add_special_tokens=False)["input_ids"] != [image_token_id]:
        raise InputError(
            f"the tokenizer in {source} does not read image token {image_token_id} ({image_token!r}) as one token; "
            "copy the tokenizer files of the same model there"
        )
    template = choose_chat_template(source, tokenizer, image_token, familys_own)
    notes = [*disagreements(source, tokenizer), *template.notes]
    longest = tokenizer.init_kwargs.get("max_length")
    if longest is None and tokenizer.init_kwargs.get("truncation"):
        longest = tokenizer.model_max_length
    if isinstance(longest, int) and longest < _NO_LIMIT:
        notes.append(
            f"the tokenizer in {source} was saved to cut texts at {longest} tokens, and transformers' processor cuts "
            "prompts there; the bundle's are not cut"
        )
    backend.no_padding()
    backend.no_truncation()
    return TextFiles(image_token, tokenizer.bos_token, special_tokens(tokenizer), backend.to_str(), template, notes)
