"""From a question or a conversation to token ids with one place for the image, by the checkpoint's chat template."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import numpy as np
from tokenizers import Tokenizer

from vtexport.bundle.manifest import TEMPLATE_NAME, Text
from vtexport.bundle.reader import Bundle
from vtexport.errors import BundleError, UsageError, quoted

Messages = Sequence[dict[str, Any]]
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the image."""

    before: np.ndarray  # [P] int64
    after: np.ndarray  # [Q] int64


class PromptReader:
    """Renders, tokenises and decodes for one bundle."""

    def __init__(self, bundle: Bundle):
        self._text: Text = bundle.manifest.text
        path = bundle.path(self._text.tokenizer)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(
                f"{path} is not a tokenizer ({quoted(error, path)}); build or copy the bundle again"
            ) from error
        path = bundle.path(self._text.chat_template)
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} cannot be read ({quoted(error, path)}); build or copy the bundle again"
            ) from error
        self._template = _compile(source)

    def render(self, prompt: str | Messages, *, raw: bool = False) -> str:
        """The text that is tokenised, with the image's placeholder in it.

        A string is one user turn about the image; a list of messages (`{"role": ..., "content": text or parts}`, as in
        transformers) is a conversation. With `raw` the string is taken as it is and holds the placeholder itself.

        Raises:
            UsageError: not exactly one image in the conversation, or the template refuses it.
        """
        token = self._text.image_token
        if raw:
            if not isinstance(prompt, str):
                raise UsageError("a raw prompt is a string")
            text = prompt
        else:
            if isinstance(prompt, str):
                if not prompt.strip():
                    raise UsageError("the prompt is empty; ask something about the image")
                if token in prompt:
                    raise UsageError(
                        f"the prompt contains {token}, which stands for the image; leave it out or use a raw prompt"
                    )
                content = [{"type": "image"}, {"type": "text", "text": prompt}]
                prompt = [{"role": "user", "content": content}]
            listed = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
            if not listed or not all(isinstance(message, dict) for message in prompt):
                raise UsageError("a prompt is a string, or a list of messages with a role and content each")
            text = self._rendered(prompt)
        if (found := text.count(token)) != 1:
            raise UsageError(f"the prompt holds {found} images ({token}); it takes exactly one")
        return text

    def read(self, prompt: str | Messages, *, raw: bool = False) -> Prompt:
        """Token ids of the rendered prompt, split at the image.

        Raises:
            UsageError: as `render`.
        """
        text = self.render(prompt, raw=raw)
        bos = self._text.bos_token
        # A template that writes the start token itself must not get a second one.
        special = bos is None or not text.startswith(bos)
        ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=special).ids, np.int64)
        at = np.flatnonzero(ids == self._text.image_token_id)
        if len(at) != 1:
            raise BundleError(
                f"the bundle's tokenizer does not know {self._text.image_token} as one token; build the bundle again"
            )
        return Prompt(ids[: at[0]], ids[at[0] + 1 :])

    def question(self, prompt: str | Messages, *, raw: bool = False) -> tuple[str, np.ndarray]:
        """The question's own text and its token ids [M] int64, for plans that pick visual tokens by the question.

        Of a conversation that is the text of the last user message; neither the template's words nor special tokens
        are in it. The parts of a raw prompt cannot be told apart, so all its text counts.

        Raises:
            UsageError: there is no such text.
        """
        if isinstance(prompt, str):
            text = prompt.replace(self._text.image_token, " ") if raw else prompt
        else:
            asked = [message for message in prompt if message.get("role") == "user"]
            content = asked[-1].get("content") if asked else None
            parts = content if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
            text = "\n".join(part for part in texts if isinstance(part, str))
        special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = [each for each in self.tokenizer.encode(text, add_special_tokens=False).ids if each not in special]
        if not text.strip() or not ids:
            raise UsageError("the last user message has no text, and the plan picks visual tokens by it; ask something")
        return text, np.asarray(ids, np.int64)

    def stream(self) -> StreamDecoder:
        """A decoder that turns ids into text as they come."""
        return StreamDecoder(self.tokenizer)

    def _rendered(self, messages: Messages) -> str:
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self._text.bos_token or "",
                eos_token=self._eos(),
            )
        except Exception as error:  # a template computes: it may also divide by zero or count too far
            raise UsageError(
                f"the chat template does not take these messages: {quoted(error)}; change them, or give the whole text "
                "(--raw-prompt)"
            ) from error

    def _eos(self) -> str:
        return self.tokenizer.id_to_token(self._text.eos_token_ids[0]) or ""


class StreamDecoder:
    """Text from token ids one by one, which joined is what the tokenizer makes of them all.

    A piece comes out once no later token can change it: a character that spans several tokens when it is whole, byte
    tokens (`<0xE2>`) when another kind of token follows, because a run of them that is not UTF-8 decodes as none.
    tokenizers' own DecodeStream (0.23) raises on such a run.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # Spaces depend on what stands before, so new tokens are decoded behind those that came out last.
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
        """What is still held back at the end, an unfinished character included."""
        piece = self._piece()
        self._before, self._new = self._new, []
        self.text += piece
        return piece

    def _piece(self) -> str:
        """The text of the new tokens."""
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._new)[len(before) :]


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    """A template in the dialect that transformers gives chat templates: sandboxed, blocks trimmed, loop controls."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.datetime.now().strftime(pattern)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise BundleError(
            f"{TEMPLATE_NAME} is not a template ({quoted(error)}); build or copy the bundle again"
        ) from error
