"""A checkpoint folder's configuration as its family's library reads it, with the shapes that follow from it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtexport.checkpoint.config_file import ConfigFile, read_config_file
from vtexport.errors import InputError, VtexportError, quoted
from vtexport.models.family import Family
from vtexport.models.parts import ModelSpec, Shapes
from vtexport.models.registry import family_of


@dataclass(frozen=True)
class ModelConfig:
    """The model of a folder's config.json. Reading it imports the family's libraries, which takes seconds."""

    file: ConfigFile
    family: Family
    config: Any  # transformers' configuration object
    spec: ModelSpec

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Of every tensor by canonical name, in model order; tied ones once."""
        return self.spec.shapes()

    @property
    def ties(self) -> dict[str, str]:
        """Tensors that the configuration ties -> the one in `shapes` that they then are."""
        return self.spec.ties


def read_model_config(folder: Path) -> ModelConfig:
    """Read `folder`'s config.json through the family that its model_type names.

    Raises:
        InputError: the file is missing or damaged, of a family that is not known, or describes no possible model.
        UsageError: it asks for something that no part of vtexport's does.
    """
    file = read_config_file(folder)
    family = family_of(file.model_type, str(file.path))
    try:
        config = family.load_config(folder)
        spec = family.model_spec(config, folder)
    except (VtexportError, ModuleNotFoundError):
        raise
    except Exception as error:
        # transformers raises whatever its validators and model constructors trip over (KeyError for an unknown
        # activation, huggingface_hub's own classes for a wrong type), always for what the file says.
        raise InputError(
            f"{file.path} does not describe a model that can be built ({quoted(error, file.path)}); correct it or "
            "fetch it again"
        ) from error
    return ModelConfig(file, family, config, spec)
