"""Tokenizer and chat template of a checkpoint, as files that the device runtime reads by itself."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import TEMPLATE_NAME, TOKENIZER_NAME
from vtexport.errors import InputError, MissingDependencyError
from vtexport.processing.chat_template import ChatTemplate, choose_chat_template

# Copied as they are, for people and for other tools; the runtime needs only tokenizer.json, the template and manifest.
_COPIED = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json")
_LONGEST_REASON = 160  # characters of what the library says, in a sentence of ours


@dataclass(frozen=True)
class TextFiles:
    """What a bundle's files and manifest say about text, read from a checkpoint and not yet written.

    `tokenizer` is the whole tokenizer.json that transformers makes of the checkpoint's files.
    """

    image_token: str
    bos_token: str | None
    special_tokens: dict[str, str | list[str]]  # transformers' special_tokens_map
    tokenizer: str
    chat_template: ChatTemplate
    notes: list[str]  # sentences about what the checkpoint's files disagree on, lack, or ask for in vain

    def write(self, folder: Path) -> None:
        """Writes tokenizer.json and chat_template.jinja into `folder`."""
        (folder / TOKENIZER_NAME).write_text(self.tokenizer, encoding="utf-8")
        # As it is, also its line ends: a template may write them
        (folder / TEMPLATE_NAME).write_text(self.chat_template.text, encoding="utf-8", newline="")


def read_text_files(source: Path, image_token_id: int, familys_own: str | None) -> TextFiles:
    """What transformers makes of the tokenizer's and the chat template's files in `source`.

    A checkpoint with a SentencePiece model alone gets a tokenizer.json, too, and special tokens are as transformers
    sets them.

    Args:
        source: the checkpoint's folder.
        image_token_id: of the configuration.
        familys_own: the family's chat template, for checkpoints without one that can carry an image.

    Raises:
        InputError: transformers cannot load the tokenizer, it does not know the image token, or no template fits.
        MissingDependencyError: it takes the sentencepiece package, which is not there.
    """
    tokenizer = load_tokenizer(source)
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
    notes = list(template.notes)
    if isinstance(longest := tokenizer.init_kwargs.get("max_length"), int):
        notes.append(
            f"the tokenizer in {source} was saved to cut texts at {longest} tokens, and transformers' processor cuts "
            "prompts there; the bundle's are not cut"
        )
    backend.no_padding()
    backend.no_truncation()
    specials = {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()}
    return TextFiles(image_token, tokenizer.bos_token, specials, backend.to_str(), template, notes)


def write_text_files(
    source: Path, folder: Path, image_token_id: int, familys_own: str | None, notify: Callable[[str], None]
) -> TextFiles:
    """`read_text_files`, its files written into `folder` beside copies of the checkpoint's own for other tools."""
    text = read_text_files(source, image_token_id, familys_own)
    for note in text.notes:
        notify(note)
    text.write(folder)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return text


def load_tokenizer(source: Path) -> Any:
    """The tokenizer that transformers' AutoTokenizer makes of the files in `source`.

    Raises:
        InputError: it makes none.
        MissingDependencyError: it takes the sentencepiece package, which is not there.
    """
    from transformers import AutoTokenizer
    from transformers.utils import is_sentencepiece_available

    model = _sentencepiece_model(source)
    # Asked before, because without the package the library tries the file as one of tiktoken's and blames that.
    if model is not None and not is_sentencepiece_available():
        raise MissingDependencyError(
            f"{source} has its tokenizer as {model.name} alone, which takes the package sentencepiece; "
            "pip install sentencepiece (it is in 'vtexport[export]')"
        )
    try:
        # Of a SentencePiece model it cannot read, the library's warnings tell of tiktoken, too.
        with _without_warnings() if model else nullcontext():
            return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its many loaders raise whatever they meet
        reason = _reason(error)
        if "tiktoken" in str(error):  # its last attempt at whatever file it could not read
            reason = f"{model.name} is not a whole SentencePiece model" if model else "transformers reads none there"
        raise InputError(
            f"the tokenizer in {source} cannot be loaded ({reason}); copy the model's tokenizer files there"
        ) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _sentencepiece_model(source: Path) -> Path | None:
    """The SentencePiece model that the tokenizer has to be made of, None where there is a tokenizer.json."""
    if (source / TOKENIZER_NAME).is_file() or any(source.glob("tokenizer.*.json")):
        return None
    named = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    return next((source / name for name in named if (source / name).is_file()), None)


def _plain(token: Any) -> str | list[str]:
    """A special token or several as strings, also where the library has its own class for them."""
    return [str(each) for each in token] if isinstance(token, (list, tuple)) else str(token)


def _reason(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}..."
