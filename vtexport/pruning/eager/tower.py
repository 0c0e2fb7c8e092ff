"""Facts of a Hugging Face LLaVA's vision tower that eager pruning reads, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtexport.errors import UsageError

# model_type of the tower -> its rows before the patches, and the strategy by which LLaVA takes the patches alone
_TOWERS = {"clip_vision_model": (1, "default"), "siglip_vision_model": (0, "full")}


@dataclass(frozen=True)
class TowerFacts:
    """Facts about a tower.

    Attributes:
        cls_rows: 1 where row 0 is a CLS token, 0 where there is none.
        feature_layers: Indices into the hidden states, from 1, in the order in which features are joined.
        grid: Rows and columns of patches.
    """

    cls_rows: int
    feature_layers: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def feature_layer(self) -> int:
        """The last of the layers; signals are those of its block."""
        return max(self.feature_layers)

    @property
    def tokens(self) -> int:
        """Patches of one image."""
        return self.grid[0] * self.grid[1]

    @classmethod
    def of(cls, config: Any) -> TowerFacts:
        """The facts in a `LlavaConfig`.

        Raises:
            UsageError: It is a tower, a layer or a strategy that cannot be pruned.
        """
        vision, strategy = config.vision_config, config.vision_feature_select_strategy
        if vision.model_type not in _TOWERS:
            known = ", ".join(map(repr, _TOWERS))
            raise UsageError(f"a vision tower of type {vision.model_type!r} cannot be pruned; {known} can")
        cls_rows, needed = _TOWERS[vision.model_type]
        if strategy != needed:
            raise UsageError(
                f"vision_feature_select_strategy={strategy!r} of a {vision.model_type} cannot be pruned; {needed!r} can"
            )
        given, blocks = config.vision_feature_layer, vision.num_hidden_layers
        layers = list(given) if isinstance(given, list | tuple) else [given]
        if not layers or not all(
            isinstance(layer, int) and (-blocks <= layer <= -1 or 1 <= layer <= blocks) for layer in layers
        ):
            raise UsageError(f"vision_feature_layer={given} cannot be pruned; -{blocks} to -1 and 1 to {blocks} can")
        side = vision.image_size // vision.patch_size
        return cls(cls_rows, tuple(layer if layer > 0 else blocks + 1 + layer for layer in layers), (side, side))
