"""The list of pruning methods, by name. Importing it and reading descriptors needs neither torch nor onnx."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

from vtexport.errors import UsageError
from vtexport.pruning.method import Method
from vtexport.pruning.op import Op, op_types
from vtexport.pruning.options import Options, closest

_METHODS: dict[str, Method] = {}
_M = TypeVar("_M", bound=type[Method])


def register(cls: _M) -> _M:
    """Class decorator: adds one `Method` to the list.

    Raises:
        ValueError: The name is taken.
    """
    if cls.name in _METHODS:
        raise ValueError(f"{cls.__qualname__} takes the name of {type(_METHODS[cls.name]).__qualname__}")
    _METHODS[cls.name] = cls()
    return cls


@functools.cache
def _load() -> None:
    """Imports every file of `vtexport.pruning.methods` and `vtexport.pruning.ops`; that registers them."""
    for room in ("ops", "methods"):
        package = importlib.import_module(f"vtexport.pruning.{room}")
        for found in pkgutil.iter_modules(package.__path__):
            if not found.name.endswith("_onnx"):  # the second half of an op too long for one file; it imports onnx
                importlib.import_module(f"{package.__name__}.{found.name}")


def list_methods() -> list[Method]:
    """All methods, sorted by name."""
    _load()
    return [_METHODS[name] for name in sorted(_METHODS)]


def list_ops() -> list[type[Op]]:
    """Classes of all ops, sorted by op type."""
    _load()
    return [op for _, op in sorted(op_types().items())]


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: There is no such method; the message lists the names and the closest one.
    """
    _load()
    if name in _METHODS:
        return _METHODS[name]
    raise UsageError(f"method {name!r} is not known; {closest(str(name), sorted(_METHODS))}")


def make_options(method: Method, values: Mapping[str, Any]) -> Options:
    """The method's options from names and values; texts, as a command line gives them, are converted.

    Raises:
        UsageError: A name or a value is not allowed.
    """
    return Options(method.name, method.options, values)
