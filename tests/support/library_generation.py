"""transformers' own logits processors and warpers for settings, as its `generate()` puts them together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin


class Asked(GenerationMixin):
    """What of a model that method asks."""

    def __init__(self, vocabulary: int):
        text = SimpleNamespace(vocab_size=vocabulary)
        self.config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: text)


def library_processors(settings: dict[str, Any], prompt: list[int], new_tokens: int, vocabulary: int) -> Any:
    """A LogitsProcessorList for names and values of GenerationConfig; None takes the library's default."""
    defaults = GenerationConfig._get_default_generation_params()
    config = GenerationConfig(**{**defaults, **settings})
    asked = Asked(vocabulary)
    eos = settings["eos_token_id"]
    config._eos_token_tensor = torch.tensor([eos] if isinstance(eos, int) else eos)
    # as `_prepare_generated_length` does
    config.max_length = len(prompt) + new_tokens
    if settings.get("min_new_tokens") is not None:
        config.min_length = settings["min_new_tokens"] + len(prompt)
    return asked._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=torch.tensor([prompt]),
        device="cpu",
        model_kwargs={},
    )


def library_scores(processors: Any, ids: list[int], scores: np.ndarray) -> np.ndarray:
    """Processed scores [V] float32."""
    return processors(torch.tensor([ids]), torch.from_numpy(scores)[None].clone())[0].numpy()
