"""Families of models: what one file of `vtexport.models` says about a model_type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vtexport.errors import InputError, quoted
from vtexport.models.neighbours import NEIGHBOURS
from vtexport.models.parts import ModelSpec
from vtexport.models.registry import families

_EXPORTED = "LLaVA-1.5 (model_type 'llava'), such as llava-hf/llava-1.5-7b-hf"


class Family(Protocol):
    """A model_type: its configuration, the parts that it names, and the layouts of its tensors' names."""

    chat_template: str  # for checkpoints that come without one

    def load_config(self, folder: Path) -> Any:
        """transformers' configuration of a checkpoint's folder, with its defaults for what config.json leaves out.

        Its dtypes are left out: the stored tensors say theirs, and not every word that stands there is one to
        transformers. So is the implementation of attention that it asks for, which changes no answer and may not be
        installed here. Raises whatever transformers raises for a file that it cannot read.
        """

    def model_spec(self, config: Any, folder: Path) -> ModelSpec:
        """The model's parts; head and embedding as a checkpoint holds them that does what the configuration says.

        What is stored decides in the end: `ModelSpec.with_head`.

        Raises:
            UsageError: the configuration asks for something that no part does.
        """

    def read_name(self, stored: str) -> tuple[str, tuple[str, ...]]:
        """A stored tensor's canonical name, and the prefixes in it that from_pretrained would not look behind."""

    def hub_name(self, canonical: str) -> str:
        """The name that a tensor has in the files on the hub."""

    def is_harmless(self, canonical: str) -> bool:
        """True where a tensor that the model has no place for may be passed over."""


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
