"""Stopping where the answer's text completes a given string, as transformers' StopStringCriteria does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_BASE = "abcdef"  # decoded in front of each token, because decoders treat the first one differently
_NO_TEXT = b"\xff"  # in no UTF-8


class StopStrings:
    """Stop strings of an answer: a call tells whether the last token completes one, which may end inside the token.

    Texts are compared as bytes, so that characters of several tokens are found, and token by token, as each decodes
    after others: special tokens count with their text. A string may begin in the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        self._tokenizer = tokenizer
        self._strings = [string.encode() for string in strings if string]
        self._longest = max(map(len, self._strings), default=0)
        self._decoder: Any = tokenizer.decoder
        kinds = _types(json.loads(self._decoder.__getstate__())) if self._decoder is not None else set()
        self._byte_fallback = "ByteFallback" in kinds
        self._byte_level = _byte_of_character() if "ByteLevel" in kinds and not self._byte_fallback else {}
        self._base = tokenizer.encode(_BASE, add_special_tokens=False).tokens
        self._seen: dict[int, bytes] = {}

    def __call__(self, ids: np.ndarray) -> bool:
        """True where the last of ids [L] int64 completes a string."""
        if not self._strings:
            return False
        # transformers looks at a token a byte, more of which only tokens without text could take
        pieces = [self._bytes(int(token)) for token in ids[-self._longest :]]
        text, last = b"".join(pieces), len(pieces[-1])
        # at least one byte of the string lies in the last token
        return any(string in text[max(0, len(text) - last - len(string) + 1) :] for string in self._strings)

    def _bytes(self, token: int) -> bytes:
        if token not in self._seen:
            self._seen[token] = self._decoded(token)
        return self._seen[token]

    def _decoded(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token)
        if name is None:  # a row of the embedding that the tokenizer does not use: no string goes on after it
            return _NO_TEXT
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(match[1], 16)])
        if self._byte_level and all(character in self._byte_level for character in name):
            return bytes(self._byte_level[character] for character in name)
        text = self._text([*self._base, name])
        _, found, rest = text.partition(_BASE)
        return (rest if found else text.removeprefix(self._text(self._base))).encode()

    def _text(self, tokens: list[str]) -> str:
        return str(self._decoder.decode(tokens)) if self._decoder is not None else " ".join(tokens)


def _types(decoder: Any) -> set[str]:
    """Types of a decoder and of those inside it."""
    if isinstance(decoder, dict):
        return {str(decoder.get("type"))}.union(*(_types(value) for value in decoder.values()))
    return set().union(*map(_types, decoder)) if isinstance(decoder, list) else set()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: those that print stand for themselves, others for 256 and on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
