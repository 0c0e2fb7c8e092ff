"""A checkpoint's tokenizer, as transformers' AutoTokenizer makes it out of the checkpoint's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import TOKENIZER_NAME
from vtexport.errors import InputError, MissingDependencyError, quoted

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of the files in `folder`; nothing is fetched and no code of theirs run.

    Raises:
        InputError: it makes none.
        MissingDependencyError: as `require_sentencepiece`.
    """
    from transformers import AutoTokenizer

    require_sentencepiece(folder)
    model = _sentencepiece_model(folder)
    try:
        # Of a SentencePiece model that it cannot read, the library's warnings tell of tiktoken, too.
        with _without_warnings() if model else nullcontext():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its many loaders raise whatever they meet
        reason = quoted(error, folder)
        if "tiktoken" in str(error):  # its last attempt at whatever file it could not read
            reason = f"{model.name} is not a whole SentencePiece model" if model else "transformers reads none there"
        raise InputError(
            f"the tokenizer in {folder} cannot be loaded ({reason}); copy the model's tokenizer files there"
        ) from error


def require_sentencepiece(folder: Path) -> None:
    """Refuses a tokenizer that takes the package sentencepiece where that is missing.

    It is for calling before the library, which then tries the file as one of tiktoken's and blames that.

    Raises:
        MissingDependencyError: the tokenizer is a SentencePiece model alone, and the package is not there.
    """
    from transformers.utils import is_sentencepiece_available

    model = _sentencepiece_model(folder)
    if model is not None and not is_sentencepiece_available():
        raise MissingDependencyError(
            f"{folder} has its tokenizer as {model.name} alone, which takes the package sentencepiece; "
            "pip install sentencepiece (it is in 'vtexport[export]')"
        )


def special_tokens(tokenizer: Any) -> dict[str, str | list[str]]:
    """transformers' special_tokens_map as plain strings, also where the library has a class of its own for tokens."""

    def plain(token: Any) -> str | list[str]:
        return [str(each) for each in token] if isinstance(token, (list, tuple)) else str(token)

    return {name: plain(token) for name, token in tokenizer.special_tokens_map.items()}


def _sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece model that the tokenizer has to be made of, None where there is a tokenizer.json."""
    if (folder / TOKENIZER_NAME).is_file() or any(folder.glob("tokenizer.*.json")):
        return None
    return next((folder / name for name in _SENTENCEPIECE if (folder / name).is_file()), None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
