"""LLaVA-1.5: a CLIP vision tower, a two-layer projector and a Llama decoder (`LlavaForConditionalGeneration`).

Liu et al., "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744; the configuration classes are those
of transformers 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vtexport.bundle import manifest as schema
from vtexport.errors import InputError, UsageError
from vtexport.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec

# Tensor names come as the hub's files have them (`language_model.model.layers.0...`,
# `vision_tower.vision_model.encoder...`), as transformers 5 saves them (no `vision_model.`) and as its modules name
# them (`model.language_model.layers.0...`). The first rule that matches is applied; the result is the canonical name.
_CANONICAL = (
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.model.", "language_model."),  # of transformers 5.4 and 5.5
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
)
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_NO_IMAGE_SETTINGS = (
    "{} has no preprocessor_config.json, so it is not known how pixels are prepared; "
    "copy the file from the model's repository"
)
# PIL's resampling numbers, which preprocessor_config.json stores
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


_T = TypeVar("_T")

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
    for prefix, replacement in _CANONICAL:
        if stored.startswith(prefix):
            return replacement + stored[len(prefix) :]
    return stored


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
    """Whether a tensor that the model has no place for may be passed over: buffers that older versions saved."""
    return canonical.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))


def load_config(folder: Path) -> Any:
    """The checkpoint's configuration, with transformers' defaults for what config.json leaves out.

    Raises whatever transformers raises for a file it cannot read; `checkpoint.model_config` makes a sentence of it.
    """
    from transformers import LlavaConfig

    return LlavaConfig.from_pretrained(folder, local_files_only=True)


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that a checkpoint of this configuration must hold."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {canonical_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if is_tied(config):
        shapes.pop("lm_head.weight", None)
    return shapes


def is_tied(config: Any) -> bool:
    """Whether the output head is the token embedding itself."""
    return bool(config.tie_word_embeddings or getattr(config.text_config, "tie_word_embeddings", False))


def model_spec(config: Any, folder: Path) -> ModelSpec:
    """What the model is made of.

    Raises:
        UsageError: the configuration asks for something that the exporter does not do yet.
    """
    where = folder / "config.json"
    return ModelSpec(
        family="llava",
        vision=_vision(config, where),
        projector=_projector(config, where),
        decoder=_decoder(config, where),
        image_token_id=int(config.image_token_index),
        eos_token_ids=_eos(config, folder),
    )


def _vision(config: Any, where: Path) -> VisionSpec:
    vision = config.vision_config
    _require(
        vision.model_type == "clip_vision_model",
        where,
        "vision_config.model_type",
        vision.model_type,
        "clip_vision_model",
    )
    _require(
        isinstance(config.vision_feature_layer, int),
        where,
        "vision_feature_layer",
        config.vision_feature_layer,
        "one layer number",
    )
    strategy = config.vision_feature_select_strategy
    _require(strategy == "default", where, "vision_feature_select_strategy", strategy, "default")
    _require(vision.num_channels == 3, where, "vision_config.num_channels", vision.num_channels, "3")
    layer = config.vision_feature_layer
    layer = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    _require(1 <= layer <= vision.num_hidden_layers, where, "vision_feature_layer", config.vision_feature_layer,
             f"-{vision.num_hidden_layers} to -1, or 1 to {vision.num_hidden_layers}")  # fmt: skip
    side = vision.image_size // vision.patch_size
    return VisionSpec(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        grid_height=side,
        grid_width=side,
        cls_rows=1,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        feature_layer=layer,
        heads=vision.num_attention_heads,
    )


def _projector(config: Any, where: Path) -> ProjectorSpec:
    activation = config.projector_hidden_act
    _require(activation in _ACTIVATIONS, where, "projector_hidden_act", activation, ", ".join(_ACTIVATIONS))
    prefix, bias = "multi_modal_projector.", config.multimodal_projector_bias

    def names(layer: str) -> tuple[str, str | None]:
        return f"{prefix}{layer}.weight", f"{prefix}{layer}.bias" if bias else None

    return ProjectorSpec(
        first=names("linear_1"),
        second=names("linear_2"),
        activation=_ACTIVATIONS[activation],
        width_in=config.vision_config.hidden_size,
        width_out=config.text_config.hidden_size,
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
    rope = LlamaRotaryEmbedding(text)
    heads = text.num_attention_heads
    return DecoderSpec(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=heads,
        kv_heads=text.num_key_value_heads or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        norm_epsilon=float(text.rms_norm_eps),
        max_positions=text.max_position_embeddings,
        inverse_frequencies=rope.inv_freq.numpy(),
        rope_scale=float(rope.attention_scaling),
        attention_bias=bool(text.attention_bias),
        mlp_bias=bool(text.mlp_bias),
        embedding="language_model.embed_tokens.weight",
        layer_prefix="language_model.layers.{}.",
        final_norm="language_model.norm.weight",
        head="language_model.embed_tokens.weight" if is_tied(config) else "lm_head.weight",
    )


def image_spec(folder: Path, vision: VisionSpec) -> schema.Image:
    """How the checkpoint's image processor prepares pixels, from preprocessor_config.json.

    Raises:
        InputError: the file is missing or describes steps that the device runtime does not do.
    """
    path = own = folder / "preprocessor_config.json"
    if not path.is_file():
        path = folder / "processor_config.json"  # transformers 5 may store the image processor inside the processor
    settings = _read(path, _Processor)
    if settings.image_processor is not None:
        settings = settings.image_processor
    elif path != own:  # a processor without one says nothing about pixels
        raise InputError(_NO_IMAGE_SETTINGS.format(folder))
    kind = settings.image_processor_type or settings.feature_extractor_type or "CLIPImageProcessor"
    _require(kind.startswith("CLIP"), path, "image_processor_type", kind, "CLIPImageProcessor")
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        _require(getattr(settings, step), path, step, False, "true")
    size, crop = settings.size, settings.crop_size
    shortest = size.get("shortest_edge", 0) if isinstance(size, dict) else size
    _require(
        shortest >= vision.image_size, path, "size", size, f"a shortest_edge of at least {vision.image_size} pixels"
    )
    height, width = (crop.get("height", 0), crop.get("width", 0)) if isinstance(crop, dict) else (crop, crop)
    same = height == width == vision.image_size
    _require(same, path, "crop_size", crop, f"{vision.image_size}, the vision tower's image_size")
    resample = settings.resample
    _require(resample in _RESAMPLE, path, "resample", resample, ", ".join(map(str, _RESAMPLE)))
    mean, std = settings.image_mean, settings.image_std
    _require(all(std), path, "image_std", std, "numbers other than 0")
    return schema.Image(
        processor=kind,
        resize_shortest=shortest,
        crop_height=height,
        crop_width=width,
        resample=_RESAMPLE[resample],  # type: ignore[arg-type]
        rescale=settings.rescale_factor,
        mean=list(mean),
        std=list(std),
    )


class _Processor(msgspec.Struct):
    """preprocessor_config.json, with CLIPImageProcessor's defaults."""

    image_processor: _Processor | None = None  # in processor_config.json
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    size: dict[str, int] | int = 224
    crop_size: dict[str, int] | int = 224
    resample: int = 3
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class _Generation(msgspec.Struct):
    """generation_config.json, as far as it is used."""

    eos_token_id: int | list[int] | None = None


def _read(path: Path, kind: type[_T]) -> _T:
    """The file as the struct `kind`; fields that the struct does not have are passed over.

    Raises:
        InputError: it is missing, no JSON, or a field is of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise InputError(_NO_IMAGE_SETTINGS.format(path.parent)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be used ({error}); correct it or fetch it again") from error


def _eos(config: Any, folder: Path) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's where there is one, as transformers' generate() does."""
    path = folder / "generation_config.json"
    eos = _read(path, _Generation).eos_token_id if path.is_file() else None
    where = path if eos is not None else folder / "config.json"
    eos = config.text_config.eos_token_id if eos is None else eos
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    fits = bool(ids) and all(isinstance(token, int) and 0 <= token < config.text_config.vocab_size for token in ids)
    _require(fits, where, "eos_token_id", eos, "the id of the token that ends an answer, or a list of such ids")
    return tuple(int(token) for token in ids)


def _require(condition: bool, where: Path, field: str, value: Any, wanted: str) -> None:
    if not condition:
        raise UsageError(
            f"{where} has {field} = {value!r}, which vtexport cannot export for LLaVA yet; it takes {wanted}"
        )
