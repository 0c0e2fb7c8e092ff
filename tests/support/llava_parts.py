"""Small LLaVA models of every tower and decoder."""

from __future__ import annotations

from typing import Any

from tiny_llava import IMAGE_TOKEN_ID, VOCABULARY
from transformers import LlavaConfig

WINDOW = 30  # fewer than the prompt's tokens, so that it drops some
TEXT = {
    "hidden_size": 72, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 112,
    "patch_size": 14,
}  # fmt: skip
# As google/siglip2-base-patch16-224 has it: the checkpoints of one resolution are of SigLIP's model_type
SIGLIP2 = {"image_size": 128, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip and mistral": ("clip_vision_model", {"model_type": "mistral", "sliding_window": WINDOW}),
    "clip and mistral without a window": ("clip_vision_model", {"model_type": "mistral", "sliding_window": None}),
    "clip and qwen2": ("clip_vision_model", {"model_type": "qwen2", "num_attention_heads": 4, "head_dim": None}),
    "siglip and qwen2 with late windows": (
        "siglip_vision_model",
        {
            "model_type": "qwen2", "num_attention_heads": 4, "head_dim": None, "use_sliding_window": True,
            "sliding_window": WINDOW, "max_window_layers": 1,
        },
    ),
    "siglip and llama": ("siglip_vision_model", {"model_type": "llama"}),
    "clip and qwen3": ("clip_vision_model", {"model_type": "qwen3"}),
    "siglip and qwen3 with biases and late windows": (
        "siglip_vision_model",
        {
            "model_type": "qwen3", "attention_bias": True, "use_sliding_window": True, "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "siglip2 and qwen3": ("siglip_vision_model", {"model_type": "qwen3"}),
    "clip and phi3": (
        "clip_vision_model", {"model_type": "phi3", "num_attention_heads": 4, "head_dim": None, "pad_token_id": 0}
    ),
    "siglip and phi3 with a window": (
        "siglip_vision_model",
        {
            "model_type": "phi3", "num_attention_heads": 4, "head_dim": None, "pad_token_id": 0,
            "sliding_window": WINDOW,
        },
    ),
}  # fmt: skip


def config_of(name: str, own_text: dict[str, Any] | None = None, **changes: Any) -> LlavaConfig:
    tower, text = MODELS[name]
    given = {
        key: value
        for key, value in {**TEXT, **text, **(own_text or {})}.items()
        if value is not None or key == "sliding_window"
    }
    return LlavaConfig(
        text_config=given,
        vision_config={**VISION, "model_type": tower, **(SIGLIP2 if name.startswith("siglip2") else {})},
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=64,
        vision_feature_select_strategy="full" if tower.startswith("siglip") else "default",
        **changes,
    )
