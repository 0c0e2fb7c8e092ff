"""LLaVA-1.5: a CLIP vision tower, a two-layer projector and a Llama decoder (`LlavaForConditionalGeneration`).

Liu et al., "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744; the configuration classes are those
of transformers 5.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from vtexport.errors import UsageError, quoted
from vtexport.models.activations import ACTIVATIONS
from vtexport.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec
from vtexport.models.wrappers import unwrapped

# Tensor names come as the hub's files have them (`language_model.model.layers.0...`,
# `vision_tower.vision_model.encoder...`), as transformers 5 saves them (no `vision_model.`), as its modules name
# them (`model.language_model.layers.0...`), and with a `.model` too many, as some of its versions saved them: every
# name that from_pretrained takes. Behind the match the rest of the name follows.
_CANONICAL = (
    (re.compile(r"(?:model\.)?lm_head\.|language_model\.lm_head\."), "lm_head."),
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?"), "vision_tower."),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "multi_modal_projector."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.){0,2}(?!lm_head\.)"), "language_model."),
)
HEAD, EMBEDDING = "lm_head.weight", "language_model.embed_tokens.weight"
_MOST_LAYERS = 1000
_VISION_BLOCK = "vision_tower.encoder.layers.{}."
_PROJECTOR_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")

# What LLaVA-1.5 was trained with, for checkpoints that come without a template: the image first, then the text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ message.role | upper }}:{{ ' ' }}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{{ ' ' }}{%- endfor -%}
{%- if message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def canonical_name(stored: str) -> str:
    """The name under which vtexport knows a tensor, whatever layout the file has."""
    return read_name(stored)[0]


def read_name(stored: str) -> tuple[str, tuple[str, ...]]:
    """A stored tensor's canonical name, and the prefixes in it that from_pretrained would not look behind."""
    bare, wrappers = unwrapped(stored)
    name, doubled = bare, False
    while True:
        for pattern, replacement in _CANONICAL:
            if match := pattern.match(name):
                return replacement + name[match.end() :], wrappers + (("model.",) if doubled else ())
        if not name.startswith("model."):  # of another model, or a trainer's own wrapper with the model inside
            return bare, wrappers
        name, doubled = name.removeprefix("model."), True


def hub_name(canonical: str) -> str:
    """The name the tensor has in the files of `llava-hf/llava-1.5-7b-hf`."""
    if canonical.startswith("vision_tower."):
        return "vision_tower.vision_model." + canonical.removeprefix("vision_tower.")
    if canonical.startswith("language_model."):
        return "language_model.model." + canonical.removeprefix("language_model.")
    if canonical.startswith("lm_head."):
        return "language_model." + canonical
    return canonical


def is_harmless(canonical: str) -> bool:
    """True where a tensor that the model has no place for may be passed over: buffers that older versions saved."""
    return canonical.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))


def load_config(folder: Path) -> Any:
    """The checkpoint's configuration, with transformers' defaults for what config.json leaves out.

    Its dtypes are left out: the stored tensors say theirs, and not every word that stands there is one to transformers.
    So is the implementation of attention that it asks for, which changes no answer and may not be installed here.

    Raises whatever transformers raises for a file it cannot read; `checkpoint.model_config` makes a sentence of it.
    """
    from transformers import LlavaConfig

    settings, _ = LlavaConfig.get_config_dict(folder, local_files_only=True)
    for part in (settings, settings.get("text_config"), settings.get("vision_config")):
        if isinstance(part, dict):
            for key in ("dtype", "torch_dtype", "attn_implementation", "_attn_implementation"):
                part.pop(key, None)
    config = LlavaConfig.from_dict(settings)
    for part in (config.text_config, config.vision_config):  # a model of many more takes hours to look at
        layers, where = getattr(part, "num_hidden_layers", 0), folder / "config.json"
        _require(layers <= _MOST_LAYERS, where, "num_hidden_layers", layers, f"{_MOST_LAYERS} at most")
    return config


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of a model of this configuration; tied ones once."""
    return stored_tensors(config)[0]


def stored_tensors(config: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by canonical name, and the tensors beyond those that transformers ties: name -> the one it then is."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    ties = {canonical_name(name): canonical_name(source) for name, source in model.all_tied_weights_keys.items()}
    shapes = {canonical_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if name not in ties}, ties


def optional_tensors(config: Any) -> tuple[str, ...]:
    """Prefixes of the canonical names that not every graph reads: what stands after the vision feature layer."""
    layer, layers = _feature_layer(config), config.vision_config.num_hidden_layers
    behind = range(layer, layers) if layer is not None and layer > 0 else ()
    return ("vision_tower.post_layernorm.", *map(_VISION_BLOCK.format, behind))


def tower_parts(config: Any) -> tuple[str, ...]:
    """Prefixes of the canonical names in the parts of the vision tower that every graph reads."""
    blocks = range(_feature_layer(config) or 0)
    return ("vision_tower.embeddings.", "vision_tower.pre_layrnorm.", *map(_VISION_BLOCK.format, blocks))


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """Parts of the model; head and embedding as a checkpoint holds them that does what the configuration says.

    What is stored decides in the end: `ModelSpec.with_head`.

    Raises:
        UsageError: the configuration asks for something that the exporter does not do yet.
    """
    where = folder / "config.json"
    spec = ModelSpec(
        family="llava",
        vision=_vision(config, where),
        projector=_projector(config, where),
        decoder=_decoder(config, where),
        image_token_id=int(config.image_token_index),
    )
    token, behind = spec.image_token_id, spec.decoder.vocab_size
    _require(0 <= token < behind, where, "image_token_index", token, f"an id of the vocabulary (0 to {behind - 1})")
    return spec


def _vision(config: Any, where: Path) -> VisionSpec:
    vision = config.vision_config
    _require(
        vision.model_type == "clip_vision_model",
        where,
        "vision_config.model_type",
        vision.model_type,
        "clip_vision_model",
    )
    strategy = config.vision_feature_select_strategy
    _require(strategy == "default", where, "vision_feature_select_strategy", strategy, "default")
    _require(vision.num_channels == 3, where, "vision_config.num_channels", vision.num_channels, "3")
    _require_layers(vision, where, "vision_config")
    given, last, layer = config.vision_feature_layer, vision.num_hidden_layers, _feature_layer(config)
    _require(layer is not None, where, "vision_feature_layer", given, "one layer's number")
    assert layer is not None
    _require(1 <= layer <= last, where, "vision_feature_layer", given, f"-{last} to -1, or 1 to {last}")
    side = vision.image_size // vision.patch_size
    _require(
        side >= 1, where, "vision_config.patch_size", vision.patch_size, f"image_size ({vision.image_size}) at most"
    )
    activation, epsilon = vision.hidden_act, float(vision.layer_norm_eps)
    _require(activation in ACTIVATIONS, where, "vision_config.hidden_act", activation, ", ".join(ACTIVATIONS))
    _require(0 <= epsilon < math.inf, where, "vision_config.layer_norm_eps", epsilon, "a small positive number")
    return VisionSpec(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        grid_height=side,
        grid_width=side,
        cls_rows=1,
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_hidden_layers,
        feature_layer=layer,
        num_attention_heads=vision.num_attention_heads,
        hidden_act=ACTIVATIONS[activation],
        layer_norm_eps=epsilon,
        block_prefix=_VISION_BLOCK,
    )


def _feature_layer(config: Any) -> int | None:
    """Index into the tower's hidden states, of which there is one more than blocks; None for several layers."""
    given = config.vision_feature_layer
    if isinstance(given, list | tuple) and len(given) == 1:
        given = given[0]
    if isinstance(given, bool) or not isinstance(given, int):
        return None
    return given if given >= 0 else config.vision_config.num_hidden_layers + 1 + given


def _projector(config: Any, where: Path) -> ProjectorSpec:
    activation, taken = config.projector_hidden_act, _PROJECTOR_ACTIVATIONS
    _require(activation in taken, where, "projector_hidden_act", activation, ", ".join(taken))
    return ProjectorSpec(
        linear_1="multi_modal_projector.linear_1",
        linear_2="multi_modal_projector.linear_2",
        bias=bool(config.multimodal_projector_bias),
        activation=ACTIVATIONS[activation],
        in_features=config.vision_config.hidden_size,
        out_features=config.text_config.hidden_size,
    )


def _decoder(config: Any, where: Path) -> DecoderSpec:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    text = config.text_config
    _require(text.model_type == "llama", where, "text_config.model_type", text.model_type, "llama")
    _require(text.hidden_act == "silu", where, "text_config.hidden_act", text.hidden_act, "silu")
    rope_type = (text.rope_parameters or {}).get("rope_type", "default")
    # "dynamic" and "longrope" change the frequencies with the length of the sequence: no fixed table can serve them
    _require(
        rope_type in {"default", "linear", "llama3", "yarn"},
        where,
        "rope_type",
        rope_type,
        "default, linear, llama3, yarn",
    )
    _require_layers(text, where, "text_config")
    epsilon = float(text.rms_norm_eps)
    _require(0 <= epsilon < math.inf, where, "text_config.rms_norm_eps", epsilon, "a small positive number")
    _require_full_attention(text, where)
    rope = LlamaRotaryEmbedding(text)
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    turned = 2 * rope.inv_freq.numel()
    _require(turned == head_dim, where, "the width of rotary positions", turned, f"head_dim, which is {head_dim}")
    return DecoderSpec(
        num_hidden_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=text.num_key_value_heads or heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        rms_norm_eps=epsilon,
        max_position_embeddings=text.max_position_embeddings,
        inv_freq=rope.inv_freq.numpy(),
        attention_scaling=float(rope.attention_scaling),
        attention_bias=bool(text.attention_bias),
        mlp_bias=bool(text.mlp_bias),
        embedding=EMBEDDING,
        layer_prefix="language_model.layers.{}.",
        final_norm="language_model.norm.weight",
        head=stored_tensors(config)[1].get(HEAD, HEAD),
    )


def _require_full_attention(text: Any, where: Path) -> None:
    """Refuses what makes transformers' masks and caches other than those of causal attention to every token before.

    Its code for all models reads such keys of any configuration, also of a Llama that has no windows of its own.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    causal = getattr(text, "is_causal", True)
    _require(causal is True, where, "text_config.is_causal", causal, "true")
    positions = text.max_position_embeddings
    other = (layer for layer in DynamicCache(config=text).layers if type(layer) is not DynamicLayer)
    if any(getattr(layer, "sliding_window", 0) < positions for layer in other):  # a longer window drops nothing
        keys = ("sliding_window", "attention_chunk_size", "layer_types", "kv_sharing_modes")
        key = next((key for key in keys if getattr(text, key, None) is not None), "layer_types")
        wanted = f"none, or one of all {positions} positions" if key in keys[:2] else "full_attention"
        _require(False, where, f"text_config.{key}", getattr(text, key, None), wanted)


def _require_layers(part: Any, where: Path, name: str) -> None:
    layers = part.num_hidden_layers
    _require(layers >= 1, where, f"{name}.num_hidden_layers", layers, "1 or more")


def _require(condition: bool, where: Path, field: str, value: Any, wanted: str) -> None:
    if not condition:
        shown = quoted(repr(value), where, limit=150)
        raise UsageError(
            f"{where} has {field} = {shown}, which vtexport cannot export for LLaVA yet; it takes {wanted}"
        )
