"""Registry of families and parts, by the `model_type` that transformers' configurations have for them.

A module of `vtexport.models`, `towers` or `decoders` registers what is in it by a decorator; `load` imports them all,
so a new file there is found by being there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vtexport import models
from vtexport.errors import InputError, quoted
from vtexport.models.neighbours import NEIGHBOURS

if TYPE_CHECKING:
    from vtexport.models.family import Family
    from vtexport.models.parts import Decoder, Tower

_EXPORTED = "LLaVA-1.5 (model_type 'llava'), such as llava-hf/llava-1.5-7b-hf"
_FOLDERS = ("", "towers", "decoders")
AnyTower = TypeVar("AnyTower", bound="Tower")
AnyDecoder = TypeVar("AnyDecoder", bound="Decoder")
AnyFamily = TypeVar("AnyFamily", bound="Family")


@dataclass(frozen=True)
class KnownTower:
    """A tower, and the `vision_feature_select_strategy` by which all of its patches and nothing else are features."""

    kind: type[Tower]
    strategy: str


_FAMILIES: dict[str, Family] = {}
_TOWERS: dict[str, KnownTower] = {}
_DECODERS: dict[str, type[Decoder]] = {}


def family(model_type: str) -> Callable[[type[AnyFamily]], type[AnyFamily]]:
    """Registers a class of `vtexport.models.family.Family` for the `model_type` of a config.json."""

    def register(kind: type[AnyFamily]) -> type[AnyFamily]:
        _FAMILIES[model_type] = kind()
        return kind

    return register


def tower(model_type: str, *, strategy: str) -> Callable[[type[AnyTower]], type[AnyTower]]:
    """Registers a `Tower` for the `model_type` of a vision configuration."""

    def register(kind: type[AnyTower]) -> type[AnyTower]:
        _TOWERS[model_type] = KnownTower(kind, strategy)
        return kind

    return register


def decoder(model_type: str) -> Callable[[type[AnyDecoder]], type[AnyDecoder]]:
    """Registers a `Decoder` for the `model_type` of a text configuration."""

    def register(kind: type[AnyDecoder]) -> type[AnyDecoder]:
        _DECODERS[model_type] = kind
        return kind

    return register


def families() -> dict[str, Family]:
    """Every family by its model_type."""
    load()
    return dict(_FAMILIES)


def towers() -> dict[str, KnownTower]:
    """Every vision tower by its model_type."""
    load()
    return dict(_TOWERS)


def decoders() -> dict[str, type[Decoder]]:
    """Every decoder by its model_type."""
    load()
    return dict(_DECODERS)


@functools.cache
def load() -> None:
    """Imports every module in which families and parts are registered."""
    for folder in _FOLDERS:
        package = importlib.import_module(f"{models.__name__}.{folder}") if folder else models
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg:
                importlib.import_module(f"{package.__name__}.{module.name}")


def family_of(model_type: str | None, where: str) -> Family:
    """The family for a config's `model_type`; `where` names the config in the error.

    Raises:
        InputError: no family of that name is known.
    """
    known = families()
    if model_type in known:
        return known[model_type]
    if model_type is None:
        raise InputError(
            f"{where} names no model_type, so nothing says what model it describes; fetch it again from the model's "
            f"repository, or add it (vtexport exports {_EXPORTED})"
        )
    named = repr(quoted(model_type, limit=60))
    if model_type in NEIGHBOURS:
        raise InputError(
            f"{where} describes a model of the family {NEIGHBOURS[model_type]} (model_type {named}), "
            f"which vtexport cannot export yet; give {_EXPORTED}"
        )
    raise InputError(
        f"{where} has model_type {named}, which vtexport cannot export; supported: {', '.join(known)}, "
        f"which is {_EXPORTED}"
    )
