"""ViP-LLaVA (Cai et al., arXiv 2312.00784): LLaVA-1.5 on features of five layers, with a norm before the connector.

The model is transformers' `VipLlavaForConditionalGeneration`, which takes every row behind the first: a tower with CLS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtexport.models.connectors.normed_mlp import NormedMlpConnector
from vtexport.models.llava import Llava, read_config
from vtexport.models.parts import Connector
from vtexport.models.place import Place
from vtexport.models.registry import family


@family("vipllava")
class VipLlava(Llava):
    """Features of the layers that `vision_feature_layer` lists, joined in its order."""

    title = "ViP-LLaVA"
    name = "vipllava"

    def load_config(self, folder: Path) -> Any:
        """As `Family.load_config`."""
        from transformers import VipLlavaConfig

        return read_config(VipLlavaConfig, folder, Place(folder / "config.json", self.title))

    def connector(self, config: Any, in_features: int, out_features: int, place: Place) -> Connector:
        """As `Llava.connector`."""
        epsilon = place.epsilon(config, "projector_layernorm_eps")
        return NormedMlpConnector.make_normed(in_features, out_features, config.projector_hidden_act, epsilon, place)

    def strategy(self, config: Any) -> str:
        """As `Llava.strategy`; the configuration has no choice."""
        return "default"
