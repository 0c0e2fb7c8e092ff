"""Families of models: what one file of `vtexport.models` says about a model_type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vtexport.models.parts import ModelSpec


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

    def canonical_name(self, stored: str) -> str:
        """The name under which vtexport knows a tensor, whatever layout the file has."""

    def hub_name(self, canonical: str) -> str:
        """The name that a tensor has in the files on the hub."""

    def is_harmless(self, canonical: str) -> bool:
        """True where a tensor that the model has no place for may be passed over."""
