"""From a question or a conversation to token ids with places for images, by the checkpoint's chat template."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from vtexport.bundle.manifest import Text
from vtexport.bundle.reader import Bundle
from vtexport.errors import BundleError, UsageError, quoted
from vtexport.runtime.chat_template import compile_template as _compile
from vtexport.runtime.chat_template import render
from vtexport.runtime.messages import Messages, check_utf8, image_parts, normalised

__all__ = ["Messages", "Prompt", "PromptReader", "Question", "StreamDecoder"]

_EMPTY = "the prompt is empty; ask something"
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Prompt:
    """Token ids of the text around the places of N >= 0 images."""

    spans: tuple[np.ndarray, ...]  # N + 1 of [P] int64, any of which may be empty

    @property
    def images(self) -> int:
        """Number of images N that it has places for."""
        return len(self.spans) - 1

    @property
    def before(self) -> np.ndarray:
        """[P] int64 before the first image."""
        return self.spans[0]

    @property
    def after(self) -> np.ndarray:
        """[Q] int64 behind the last image; the whole text, as `before` is, where there is none."""
        return self.spans[-1]

    def ids(self, image_token_id: int, rows: Sequence[int]) -> np.ndarray:
        """[L] int64 of the whole prompt as transformers has it, with `rows[i]` placeholders for image i."""
        places = [np.full(count, image_token_id, np.int64) for count in rows]
        parts = [part for pair in zip(self.spans, places, strict=False) for part in pair]
        return np.concatenate([*parts, self.spans[-1]])


class Question(NamedTuple):
    """The question's own text, by which plans may pick visual tokens."""

    text: str
    ids: np.ndarray  # [M] int64, without special tokens


class PromptReader:
    """Renders, tokenises and decodes for one bundle.

    Raises:
        BundleError: the tokenizer or the chat template is damaged.
    """

    def __init__(self, bundle: Bundle):
        text = bundle.manifest.text
        self._load(text, bundle.path(text.tokenizer), bundle.path(text.chat_template))

    @classmethod
    def from_files(cls, text: Text, tokenizer: Path, template: Path) -> PromptReader:
        """A reader without a bundle around it; `text` names tokens and roles, its names of files do not count.

        Raises:
            BundleError: one of the files is damaged.
        """
        reader = cls.__new__(cls)
        reader._load(text, tokenizer, template)
        return reader

    def _load(self, text: Text, tokenizer: Path, template: Path) -> None:
        self._text = text
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(
                f"{tokenizer} is not a tokenizer ({quoted(error, tokenizer)}); build or copy the bundle again"
            ) from error
        # Neither has a place in a prompt, whatever the file says: transformers sets both anew in every call.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        try:
            source = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{template} cannot be read ({quoted(error, template)}); build or copy the bundle again"
            ) from error
        self._template = _compile(source)

    def render(self, prompt: str | Messages, *, raw: bool = False, images: int | None = None) -> str:
        """The text that is tokenised, with a placeholder in it for each image.

        A string is one user turn with the images before the text; a list of messages (see `messages`) is a
        conversation, rendered as transformers' processor does. With `raw` the string is taken as it is and holds the
        placeholders itself.

        Args:
            prompt: a question or a conversation.
            raw: no chat template.
            images: how many are given. When left out, a conversation and a raw prompt have as many as they hold, and
                any other string has one.

        Raises:
            UsageError: another number of images in the prompt, the template refuses it, or text that is not UTF-8.
        """
        token = self._text.image_token
        if isinstance(prompt, str):
            check_utf8(prompt, "the prompt")
        if raw:
            if not isinstance(prompt, str):
                raise UsageError("a raw prompt is a string")
            if not prompt:
                raise UsageError(_EMPTY)
            self._check_places(prompt.count(token), images)
            return prompt
        if isinstance(prompt, str):
            if not prompt.strip():
                raise UsageError(_EMPTY)
            if token in prompt:
                raise UsageError(
                    f"the prompt contains {token}, which stands for the image; leave it out or use a raw prompt"
                )
            asked = {"type": "text", "text": prompt}
            parts = [{"type": "image"} for _ in range(1 if images is None else images)]
            prompt = [{"role": "user", "content": [*parts, asked]}]
        messages = normalised(prompt, self._text.part_roles)
        text = render(self._template, messages, self._text.special_tokens)
        check_utf8(text, "the text of the chat template")
        found, named = text.count(token), len(image_parts(messages))
        if named not in (0, found):  # without image parts the placeholders may stand in a message's text
            raise UsageError(
                f"the prompt holds {found} images ({token}) of {named} image parts; use a chat template that writes "
                f"{token} once for each, and no text with {token} in it"
            )
        self._check_places(found, images)
        return text

    def _check_places(self, found: int, images: int | None) -> None:
        if images is not None and found != images:
            token, are = self._text.image_token, "is" if images == 1 else "are"
            raise UsageError(
                f"the prompt holds {found} images ({token}) and {images} {are} given; give as many as it has places for"
            )

    def read(self, prompt: str | Messages, *, raw: bool = False, images: int | None = None) -> Prompt:
        """Token ids of the rendered prompt, split at its images; arguments as of `render`.

        Raises:
            UsageError: as `render`.
        """
        text = self.render(prompt, raw=raw, images=images)
        bos = self._text.bos_token
        # A template that writes the start token itself must not get a second one.
        special = bos is None or not text.startswith(bos)
        ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=special).ids, np.int64)
        at = np.flatnonzero(ids == self._text.image_token_id)
        if len(at) != text.count(self._text.image_token):
            raise BundleError(
                f"the bundle's tokenizer does not know {self._text.image_token} as one token; build the bundle again"
            )
        if not len(ids):  # of characters that the tokenizer drops
            raise UsageError(_EMPTY)
        edges = [-1, *at.tolist(), len(ids)]
        return Prompt(tuple(ids[start + 1 : end] for start, end in itertools.pairwise(edges)))

    def question(self, prompt: str | Messages, *, raw: bool = False) -> Question:
        """The question's own text and its token ids, for plans that pick visual tokens by the question.

        Of a conversation that is the text of the last user message; neither the template's words nor special tokens
        are in it. The parts of a raw prompt cannot be told apart, so all its text counts.

        Raises:
            UsageError: there is no such text, or the messages are not such that can be taken.
        """
        if isinstance(prompt, str):
            text = prompt.replace(self._text.image_token, " ") if raw else prompt
        else:
            asked = [message for message in normalised(prompt) if message["role"] == "user"]
            content = asked[-1].get("content", ()) if asked else ()
            if isinstance(content, str):
                text = content.replace(self._text.image_token, " ").strip()
            else:
                text = "\n".join(part["text"] for part in content if part["type"] == "text")
        special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = [each for each in self.tokenizer.encode(text, add_special_tokens=False).ids if each not in special]
        if not text.strip() or not ids:
            raise UsageError("the last user message has no text, and the plan picks visual tokens by it; ask something")
        return Question(text, np.asarray(ids, np.int64))

    def stream(self) -> StreamDecoder:
        """A decoder that turns ids into text as they come."""
        return StreamDecoder(self.tokenizer)


class StreamDecoder:
    """Text from token ids one by one, which joined is what the tokenizer makes of them all.

    A piece comes out once no later token can change it: a character that spans several tokens when it is whole, byte
    tokens (`<0xE2>`) when another kind of token follows, because a run of them that is not UTF-8 decodes as none.
    tokenizers' own DecodeStream (0.23) raises on such a run.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # Spaces depend on what stands before, so new tokens are decoded after those that came out last.
        self._silent = {number for number, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self._before: list[int] = []
        self._new: list[int] = []
        self.text = ""  # everything that has come out so far

    def step(self, token: int) -> str:
        """The text that this token completes, empty where it completes none."""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._silent:
            return ""
        self._new.append(token)
        if _BYTE_TOKEN.fullmatch(name):
            return ""
        piece = self._piece()
        if not piece or piece.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._before, self._new = self._new, []
        self.text += piece
        return piece

    def finish(self) -> str:
        """The text still held back at the end, an unfinished character included."""
        piece = self._piece()
        self._before, self._new = self._new, []
        self.text += piece
        return piece

    def _piece(self) -> str:
        """The text of the new tokens."""
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._new)[len(before) :]
