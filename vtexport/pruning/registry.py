"""The list of pruning methods, by name. Importing it and reading descriptors needs neither torch nor onnx."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

from vtexport.errors import UsageError
from vtexport.pruning.method import Method, Parameters

_METHODS: dict[str, Method] = {}
_M = TypeVar("_M", bound=type[Method])
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def register(cls: _M) -> _M:
    """Class decorator: adds one `Method` to the list.

    Raises:
        ValueError: The name or the op type is taken, or the op type lacks the prefix `Vtx`. TensorRT's parser looks
            functions up by name alone, so an op type must be unlike every other op in any domain.
    """
    if cls.op_type and not cls.op_type.startswith("Vtx"):
        raise ValueError(f"op type {cls.op_type} of {cls.__qualname__} must start with Vtx")
    for other in _METHODS.values():
        if cls.name == other.name or (cls.op_type and cls.op_type == other.op_type):
            raise ValueError(f"{cls.__qualname__} takes the name or op type of {type(other).__qualname__}")
    _METHODS[cls.name] = cls()
    return cls


@functools.cache
def _load() -> None:
    """Imports every file of `vtexport.pruning.methods`; that registers them."""
    package = importlib.import_module("vtexport.pruning.methods")
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.endswith("_onnx"):  # the second half of a method too long for one file; it imports onnx
            importlib.import_module(f"{package.__name__}.{found.name}")


def list_methods() -> list[Method]:
    """All methods, sorted by name."""
    _load()
    return [_METHODS[name] for name in sorted(_METHODS)]


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: There is no such method; the message lists the names and the closest one.
    """
    _load()
    if name in _METHODS:
        return _METHODS[name]
    raise UsageError(f"method {name!r} is not known; {_hint(str(name), sorted(_METHODS))}")


def make_parameters(method: Method, values: Mapping[str, Any]) -> Parameters:
    """The method's parameters from names and values; texts, as a command line gives them, are converted.

    Raises:
        UsageError: A name or a value is not allowed.
    """
    specs = {spec.name: spec for spec in dataclasses.fields(method.parameters)}
    for name in values:
        if name not in specs:
            known = _hint(str(name), sorted(specs)) if specs else "it has no parameters"
            raise UsageError(f"parameter {name!r} is not known to {method.name}; {known}")
    return method.parameters(**{name: _converted(specs[name], value) for name, value in values.items()})


def _converted(spec: dataclasses.Field[Any], value: Any) -> Any:
    kind = spec.metadata["kind"]
    if not isinstance(value, str) or kind is str:
        return value
    text = value.strip().lower()
    if text == "none" and spec.default is None:
        return None
    try:
        return _WORDS[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return value  # the parameters class refuses it and says what is allowed


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(known)}"
