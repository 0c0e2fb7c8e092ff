"""Model families: one file a family, found by the `model_type` that a checkpoint's config.json states."""

from __future__ import annotations

import importlib
from types import ModuleType

from vtexport.errors import InputError, quoted
from vtexport.models.neighbours import NEIGHBOURS

FAMILIES = {"llava": "vtexport.models.llava"}
_EXPORTED = "LLaVA-1.5 (model_type 'llava'), such as llava-hf/llava-1.5-7b-hf"


def family_of(model_type: str | None, where: str) -> ModuleType:
    """The family module for a config's `model_type`; `where` names the config in the error.

    Raises:
        InputError: no family of that name is known.
    """
    if model_type in FAMILIES:
        return importlib.import_module(FAMILIES[model_type])
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
        f"{where} has model_type {named}, which vtexport cannot export; supported: {', '.join(FAMILIES)}, "
        f"which is {_EXPORTED}"
    )
