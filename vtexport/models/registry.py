"""Registry of families and parts, by the `model_type` that transformers' configurations have for them.

A module of `vtexport.models`, `towers` or `decoders` registers what is in it by a decorator; `load` imports them all, so
a new file there is found by being there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vtexport import models

if TYPE_CHECKING:
    from vtexport.models.family import Family
    from vtexport.models.parts import Decoder, Tower
    from vtexport.models.place import Place

_FOLDERS = ("", "towers", "decoders")
Registered = TypeVar("Registered", bound=type)


class TowerReader(Protocol):
    """A tower's class."""

    def read(self, config: Any, feature_layer: int, place: Place) -> Tower:
        """The tower of transformers' configuration; refuses what it asks for and the tower cannot do."""


class DecoderReader(Protocol):
    """A decoder's class."""

    def read(self, config: Any, place: Place) -> Decoder:
        """The decoder of transformers' configuration; refuses what it asks for and the decoder cannot do."""


@dataclass(frozen=True)
class KnownTower:
    """A tower, and the `vision_feature_select_strategy` by which all of its patches and nothing else are features."""

    reader: TowerReader
    strategy: str


_FAMILIES: dict[str, Family] = {}
_TOWERS: dict[str, KnownTower] = {}
_DECODERS: dict[str, DecoderReader] = {}


def family(model_type: str) -> Callable[[Registered], Registered]:
    """Registers a class of `vtexport.models.family.Family` for the `model_type` of a config.json."""

    def register(each: Registered) -> Registered:
        _FAMILIES[model_type] = each()
        return each

    return register


def tower(model_type: str, *, strategy: str) -> Callable[[Registered], Registered]:
    """Registers a `Tower` for the `model_type` of a vision configuration."""

    def register(each: Registered) -> Registered:
        _TOWERS[model_type] = KnownTower(each, strategy)
        return each

    return register


def decoder(model_type: str) -> Callable[[Registered], Registered]:
    """Registers a `Decoder` for the `model_type` of a text configuration."""

    def register(each: Registered) -> Registered:
        _DECODERS[model_type] = each
        return each

    return register


def families() -> dict[str, Family]:
    """Every family by its model_type."""
    load()
    return dict(_FAMILIES)


def towers() -> dict[str, KnownTower]:
    """Every vision tower by its model_type."""
    load()
    return dict(_TOWERS)


def decoders() -> dict[str, DecoderReader]:
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
