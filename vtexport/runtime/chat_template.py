"""Chat templates rendered as transformers renders them: its sandbox, filters, variables and form of the data.

`tests/runtime/test_template_rendering.py` holds the texts to those of the installed library.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import numpy as np

from vtexport.bundle.manifest import TEMPLATE_NAME
from vtexport.errors import BundleError, UsageError, quoted

# What the reasoning of a message may be called; templates read the first, those of gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def compile_template(source: str) -> jinja2.Template:
    """A template in the dialect that transformers gives chat templates: sandboxed, blocks trimmed, loop controls.

    Raises:
        BundleError: `source` is not a template.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dictionaries(),
        "namespace": _OpenNamespace,
    }
    try:
        return environment.from_string(source)
    except Exception as error:  # the parser folds constants, so it raises whatever a template's arithmetic does
        raise BundleError(
            f"{TEMPLATE_NAME} is not a template ({quoted(error)}); build or copy the bundle again"
        ) from error


def render(
    template: jinja2.Template,
    messages: Iterable[Mapping[str, Any]],
    special_tokens: Mapping[str, str | list[str]],
) -> str:
    """The text of a conversation, with the beginning of the answer.

    Args:
        template: from `compile_template`.
        messages: as `messages.normalised` gives them.
        special_tokens: transformers' special_tokens_map, each token a variable by its name ("bos_token").

    Raises:
        UsageError: the template does not take these messages.
    """
    try:
        return template.render(
            **{
                **special_tokens,
                "messages": [_with_reasoning(plain(message)) for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
            }
        )
    except Exception as error:  # a template computes: it may also divide by zero or count too far
        raise UsageError(
            f"the chat template does not take these messages: {quoted(error)}; change them, or give the whole text "
            "(--raw-prompt)"
        ) from error


def plain(value: Any) -> Any:
    """`value` out of JSON's types and tuples alone, because a template may call the methods of whatever it sees.

    What is neither becomes a text that names its type, such as "<ndarray>": templates ask whether an image is there,
    not what it is.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # an enum or another subclass loses its methods
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(plain(inner) for inner in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic's models
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read, whichever it came under."""
    for name in _REASONING:
        if message.get(name) is not None:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is just its content.

    It is a call block as in transformers, so that what is set inside stays inside.
    """

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return caller()


class _Dictionaries:
    """`dict(...)` and `dict.fromkeys(...)` for templates, without the class and what can be reached from it."""

    def __call__(self, *items: Any, **named: Any) -> dict[Any, Any]:
        return dict(*items, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _OpenNamespace(jinja2.utils.Namespace):
    """`namespace(...)` for templates, without names that begin with an underscore: those lead to Python's internals."""

    def __init__(*values: Any, **named: Any) -> None:  # without `self`, so that a template may use that name
        attributes = dict(*values[1:], **named)
        _refuse_hidden(attributes)
        jinja2.utils.Namespace.__init__(values[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden([name])
        super().__setitem__(name, value)


def _refuse_hidden(names: Iterable[Any]) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the name {name!r} in a chat template")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it; jinja2's own filter escapes what HTML reserves."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,  # type: ignore[arg-type]
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 (a template may name the argument)
    return datetime.datetime.now().strftime(format)
