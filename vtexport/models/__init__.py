"""Model families: one file a family, found by the `model_type` that a checkpoint's config.json states."""

from __future__ import annotations

import importlib
from types import ModuleType

from vtexport.errors import InputError, quoted

FAMILIES = {"llava": "vtexport.models.llava"}


def family_of(model_type: str | None, where: str) -> ModuleType:
    """The family module for a config's `model_type`; `where` names the config in the error.

    Raises:
        InputError: no family of that name is known.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"{where} has model_type {quoted(repr(model_type), where)}, which vtexport cannot export; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return importlib.import_module(FAMILIES[model_type])
