"""Inverse frequencies against transformers' own modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vtexport.models.rope import KINDS, rotary

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "large base": {"rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 5e5,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn with its settings": {
        "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256, "beta_fast": 16, "beta_slow": 2,
        "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False,
    },
    "yarn with a factor of attention": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024, "attention_factor": 1.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_transformers(case: str, head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, **CASES[case]},
    )  # fmt: skip
    wanted = LlamaRotaryEmbedding(config)
    found, scaling = rotary(config.rope_parameters, head_dim, config.max_position_embeddings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.inv_freq.numpy(), rtol=3e-7)  # the last bit or two of float32
    assert scaling == pytest.approx(wanted.attention_scaling, rel=1e-12)


def test_kinds_that_depend_on_the_length_are_not_there() -> None:
    assert set(KINDS) == {"default", "linear", "llama3", "yarn"}
