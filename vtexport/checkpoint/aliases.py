"""Short names for checkpoints, and the files of each that ship with vtexport.

Every alias has a packaged config.json, so that a model's true shapes are known without a download.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path

from vtexport.checkpoint.model_config import read_model_config

PACKAGED = Path(__file__).resolve().parent / "packaged"


@dataclass(frozen=True)
class Alias:
    """A short name. `hub_id` is None for a model that ships with vtexport."""

    name: str
    description: str
    hub_id: str | None

    @property
    def folder(self) -> Path:
        """The packaged files: config.json at least, the whole model for one without a hub id."""
        return PACKAGED / self.name


ALIASES = {
    alias.name: alias
    for alias in (
        Alias("llava", "LLaVA-1.5 7B: CLIP ViT-L/14 at 336 pixels, Vicuna 7B", "llava-hf/llava-1.5-7b-hf"),
        Alias("llava-13b", "LLaVA-1.5 13B: CLIP ViT-L/14 at 336 pixels, Vicuna 13B", "llava-hf/llava-1.5-13b-hf"),
        Alias("mini", "a tiny LLaVA that ships with vtexport, trained on rendered scenes", None),
    )
}


def parameter_count(alias: Alias) -> int:
    """Number of parameters, from the shapes that the packaged configuration implies (a tied head counts once).

    Imports the model family's libraries, which takes seconds.
    """
    return sum(math.prod(shape) for shape in read_model_config(alias.folder).shapes.values())


def closest_alias(name: str) -> str | None:
    """The alias that a misspelt name most likely meant, or None."""
    matches = difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.6)
    return matches[0] if matches else None
