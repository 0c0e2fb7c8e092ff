"""Place in a configuration file, for sentences about values that no part can be made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vtexport.errors import UsageError, quoted


@dataclass(frozen=True)
class Place:
    """A part of a config.json: `path` is the file, `model` what is made of it, `prefix` begins the fields' names."""

    path: Path
    model: str
    prefix: str = ""

    def of(self, part: str) -> Place:
        """The same within a part such as "vision_config"."""
        return replace(self, prefix=f"{part}.")

    def require(self, condition: bool, field: str, value: object, wanted: str) -> None:
        """Refuses a value for which `condition` is False; `wanted` says what is taken.

        Raises:
            UsageError: naming file, field and value.
        """
        if not condition:
            shown = quoted(repr(value), self.path, limit=150)
            raise UsageError(
                f"{self.path} has {self.prefix}{field} = {shown}, which vtexport cannot export for {self.model} yet; "
                f"it takes {wanted}"
            )

    def positive(self, config: Any, *fields: str) -> None:
        """Refuses fields of `config` that are not whole numbers from 1 on."""
        for field in fields:
            value = getattr(config, field)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self.require(whole and value >= 1, field, value, "1 or more")

    def epsilon(self, config: Any, field: str) -> float:
        """A field that is added under a root: 0 or a small positive number."""
        value = float(getattr(config, field))
        self.require(0 <= value < math.inf, field, value, "a small positive number")
        return value

    def heads(self, config: Any) -> None:
        """Refuses a hidden size that the attention heads do not divide."""
        heads, width = config.num_attention_heads, config.hidden_size
        self.require(width % heads == 0, "num_attention_heads", heads, f"a divisor of hidden_size, which is {width}")
