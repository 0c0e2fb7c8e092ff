"""A checkpoint's tokenizer, as transformers' AutoTokenizer makes it out of the checkpoint's files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import TOKENIZER_NAME
from vtexport.errors import InputError, MissingDependencyError, cut, quoted
from vtexport.processing.library import quiet

_CONFIG_FILE, _SPECIAL_TOKENS_FILE = "tokenizer_config.json", "special_tokens_map.json"
_ADDED_TOKENS_FILE = "added_tokens.json"
_SPECIAL_TOKENS = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "image")}
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
        with quiet() if model else nullcontext():
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


def disagreements(folder: Path, tokenizer: Any) -> list[str]:
    """Sentences on special tokens that one of the checkpoint's files names otherwise than transformers takes them.

    Args:
        folder: the checkpoint.
        tokenizer: what `load_tokenizer` made of it.
    """
    taken = special_tokens(tokenizer)
    notes = []
    for file in (_SPECIAL_TOKENS_FILE, _CONFIG_FILE):
        said = {name: _content(value) for name, value in _read(folder / file).items() if name in _SPECIAL_TOKENS}
        if wrong := [name for name, token in said.items() if token is not None and token != taken.get(name)]:
            shown = "; ".join(f"{name} {said[name]!r}, where transformers takes {taken.get(name)!r}" for name in wrong)
            notes.append(f"{file} has {cut(shown, 200)}, and so does the bundle")
    added = _read(folder / _CONFIG_FILE).get("added_tokens_decoder")
    decoder = added if isinstance(added, dict) else {}
    numbers = {_content(token): int(number) for number, token in decoder.items() if number.isdecimal()}
    vocabulary = tokenizer.get_vocab()
    files: list[tuple[str, dict[Any, Any]]] = [
        (_ADDED_TOKENS_FILE, _read(folder / _ADDED_TOKENS_FILE)), (_CONFIG_FILE, numbers),
    ]  # fmt: skip
    for file, stored in files:
        if wrong := [token for token, number in stored.items() if vocabulary.get(token) != number]:
            shown = "; ".join(
                f"{token!r} as {stored[token]!r}, where transformers takes {vocabulary.get(token)}" for token in wrong
            )
            notes.append(f"{file} has the token {cut(shown, 200)}, and so does the bundle")
    return notes


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; nothing where there is none that could be read, of which the library speaks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _content(token: Any) -> str | None:
    """A token's text, however a file writes it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece model that the tokenizer has to be made of, None where there is a tokenizer.json."""
    if (folder / TOKENIZER_NAME).is_file() or any(folder.glob("tokenizer.*.json")):
        return None
    return next((folder / name for name in _SENTENCEPIECE if (folder / name).is_file()), None)
