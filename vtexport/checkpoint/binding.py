"""Stored tensors matched with the tensors that a model's configuration asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vtexport.checkpoint.config_file import WEIGHT_DTYPES
from vtexport.checkpoint.model_config import ModelConfig
from vtexport.checkpoint.safetensors_index import TensorEntry
from vtexport.errors import InputError

_NAMED_AT_MOST = 3
_WEIGHT_FORMATS = frozenset(WEIGHT_DTYPES.values())
_TIED_HEAD = "lm_head.weight"


def bind_tensors(stored: Mapping[str, TensorEntry], model: ModelConfig, folder: Path) -> dict[str, TensorEntry]:
    """Canonical name -> entry of every tensor that the configuration asks for, in the model's order.

    Raises:
        InputError: a tensor is missing, left over, stored twice, of another shape or not in a float format.
    """
    family, shapes = model.family, model.shapes
    found: dict[str, TensorEntry] = {}
    original: dict[str, str] = {}
    for stored_name, entry in stored.items():
        name = family.canonical_name(stored_name)
        if name in found:
            raise InputError(
                f"{folder} holds one tensor under two names, {original[name]} and {stored_name}: "
                "files of two checkpoints are mixed; fetch one of them into an empty folder"
            )
        found[name], original[name] = entry, stored_name

    missing = [name for name in shapes if name not in found]
    if missing:
        raise InputError(
            f"{folder} lacks {_some(missing, 'tensor')} that its config.json asks for; "
            "fetch weights and config.json again together"
        )
    tied = family.is_tied(model.config)
    extra = [
        original[name]
        for name in found
        if name not in shapes and not family.is_harmless(name) and not (tied and name == _TIED_HEAD)
    ]
    if extra:
        raise InputError(
            f"{folder} holds {_some(extra, 'tensor')} that the model of its config.json has no place for; "
            "check that weights and config.json belong together"
        )
    wrong = [name for name, shape in shapes.items() if found[name].shape != shape]
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{folder} holds {_some(wrong, 'tensor')} of another shape than its config.json implies "
            f"({first}: {list(found[first].shape)}, not {list(shapes[first])}); "
            "check that weights and config.json belong together"
        )
    unreadable = [name for name in shapes if found[name].dtype not in _WEIGHT_FORMATS]
    if unreadable:
        raise InputError(
            f"{folder} stores {_some(unreadable, 'tensor')} as {found[unreadable[0]].dtype}, and vtexport reads "
            f"{', '.join(WEIGHT_DTYPES)}; use the checkpoint before quantisation"
        )
    return {name: found[name] for name in shapes}


def _some(names: Iterable[str], what: str) -> str:
    """`the tensor a`, `3 tensors (a, b, c)` or `7 tensors (a, b, c, ...)`."""
    listed = [name if name.isprintable() else repr(name) for name in names]
    if len(listed) == 1:
        return f"the {what} {listed[0]}"
    more = ", ..." if len(listed) > _NAMED_AT_MOST else ""
    return f"{len(listed)} {what}s ({', '.join(listed[:_NAMED_AT_MOST])}{more})"
