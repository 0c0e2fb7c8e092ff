"""LLaVA-1.5 and its kin: a vision tower, a two-layer connector and a decoder (`LlavaForConditionalGeneration`).

Liu et al., "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744; the configuration classes are those
of transformers 5.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import ImagesPerPrompt
from vtexport.models.connectors.mlp import MlpConnector
from vtexport.models.llava_names import LlavaNames
from vtexport.models.parts import EMBEDDING, HEAD, Connector, Decoder, ModelSpec, Tower
from vtexport.models.place import Place
from vtexport.models.registry import decoders, family, towers

_MOST_LAYERS = 1000

# What LLaVA-1.5 was trained with, for checkpoints that come without a template: the image first, then the text.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ message.role | upper }}:{{ ' ' }}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{{ ' ' }}{%- endfor -%}
{%- if message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


@family("llava")
class Llava(LlavaNames):
    """Any tower and decoder that are registered, as the configuration names them (`models.family.Family`)."""

    chat_template = _CHAT_TEMPLATE
    title = "LLaVA"  # in sentences
    name = "llava"  # in the manifest

    def load_config(self, folder: Path) -> Any:
        """As `Family.load_config`."""
        from transformers import LlavaConfig

        return read_config(LlavaConfig, folder, Place(folder / "config.json", self.title))

    def model_spec(self, config: Any, folder: Path) -> ModelSpec:
        """As `Family.model_spec`."""
        place = Place(folder / "config.json", self.title)
        vision, decoder = self.tower(config, place), self.decoder(config, place)
        connector = self.connector(config, vision.feature_width, decoder.hidden_size, place)
        token, behind = int(config.image_token_index), decoder.vocab_size
        place.require(0 <= token < behind, "image_token_index", token, f"an id of the vocabulary (0 to {behind - 1})")
        tied = bool(config.tie_word_embeddings or config.text_config.tie_word_embeddings)
        decoder = replace(decoder, head=EMBEDDING if tied else HEAD)
        return ModelSpec(
            self.name,
            vision,
            connector,
            decoder,
            image_token_id=token,
            ties_head=tied,
            images_per_prompt=ImagesPerPrompt(),  # any number, and none
        )

    def connector(self, config: Any, in_features: int, out_features: int, place: Place) -> Connector:
        """The connector between the features and the language model's rows."""
        bias = bool(config.multimodal_projector_bias)
        return MlpConnector.make(in_features, out_features, config.projector_hidden_act, bias, place)

    def strategy(self, config: Any) -> str:
        """The `vision_feature_select_strategy` by which transformers' model takes features."""
        return str(config.vision_feature_select_strategy)

    def tower(self, config: Any, place: Place) -> Tower:
        """The tower that `vision_config` names, cut at `vision_feature_layer`."""
        vision, within, known = config.vision_config, place.of("vision_config"), towers()
        within.require(vision.model_type in known, "model_type", vision.model_type, ", ".join(known))
        taken, strategy = known[vision.model_type], self.strategy(config)
        place.require(strategy == taken.strategy, "vision_feature_select_strategy", strategy, taken.strategy)
        within.positive(vision, "num_hidden_layers")
        layers, last, given = feature_layers(config), vision.num_hidden_layers, config.vision_feature_layer
        place.require(bool(layers), "vision_feature_layer", given, "the numbers of one or more layers")
        known_layers = all(1 <= layer <= last for layer in layers)
        place.require(known_layers, "vision_feature_layer", given, f"-{last} to -1, or 1 to {last}")
        return taken.kind.read(vision, layers, within)

    def decoder(self, config: Any, place: Place) -> Decoder:
        """The decoder that `text_config` names."""
        text, within, known = config.text_config, place.of("text_config"), decoders()
        within.require(text.model_type in known, "model_type", text.model_type, ", ".join(known))
        return known[text.model_type].read(text, within)


def read_config(kind: Any, folder: Path, place: Place) -> Any:
    """A folder's configuration of transformers' class `kind`, as `Family.load_config` describes it."""
    settings, _ = kind.get_config_dict(folder, local_files_only=True)
    for part in (settings, settings.get("text_config"), settings.get("vision_config")):
        if isinstance(part, dict):
            for key in ("dtype", "torch_dtype", "attn_implementation", "_attn_implementation"):
                part.pop(key, None)
    config = kind.from_dict(settings)
    for part in (config.text_config, config.vision_config):  # a model of many more takes hours to look at
        layers = getattr(part, "num_hidden_layers", 0)
        place.require(layers <= _MOST_LAYERS, "num_hidden_layers", layers, f"{_MOST_LAYERS} at most")
    return config


def feature_layers(config: Any) -> tuple[int, ...]:
    """Indices into the tower's hidden states, one more than blocks; none where the configuration has no numbers."""
    given = config.vision_feature_layer
    layers = list(given) if isinstance(given, list | tuple) else [given]
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        return ()
    states = config.vision_config.num_hidden_layers + 1
    return tuple(layer if layer >= 0 else states + layer for layer in layers)
