from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from vtexport.checkpoint.random_values import CHUNK_VALUES, Distribution, distribution_of, value_chunks


def values(name: str = "a", count: int = 4096, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.concatenate(list(value_chunks(name, count, Distribution(0.5, 2.0), dtype=dtype, seed=seed)))


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        ("float32", "f9ae720faccbf53e"),
        ("float16", "7fd7cf91f86b3c37"),
        ("bfloat16", "b5fc0e7c2269fef8"),
    ],
)
def test_bytes_are_the_same_everywhere(dtype: str, digest: str) -> None:
    """If this fails on purpose, raise RECIPE_VERSION in random_weights, so that caches are written anew."""
    assert hashlib.sha256(values(dtype=dtype, count=10_001).tobytes()).hexdigest()[:16] == digest


def test_seed_and_name_decide() -> None:
    assert (values() == values()).all()
    assert (values() != values(seed=1)).mean() > 0.99
    assert (values() != values(name="b")).mean() > 0.99


def test_chunks_continue_one_stream() -> None:
    count = 2 * CHUNK_VALUES + 5
    chunks = list(value_chunks("a", count, Distribution(0, 1), dtype="float16", seed=0))
    assert [chunk.size for chunk in chunks] == [CHUNK_VALUES, CHUNK_VALUES, 5]
    short = next(value_chunks("a", 9, Distribution(0, 1), dtype="float16", seed=0))
    assert (chunks[0][:9] == short).all()
    assert (chunks[0][:4096] != chunks[1][:4096]).mean() > 0.99


def test_moments_and_dtypes() -> None:
    single = values(count=200_000)
    assert single.dtype == np.float32
    assert abs(single.mean() - 0.5) < 0.02
    assert abs(single.std() - 2.0) < 0.02
    half = values(count=200_000, dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, single, rtol=1e-3, atol=1e-6)


def test_bfloat16_is_rounded_to_nearest() -> None:
    import torch

    bits = values(dtype="bfloat16")
    assert bits.dtype == np.uint16
    expected = torch.from_numpy(values()).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16), expected)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="int8"):
        values(dtype="int8")


@pytest.mark.parametrize(
    ("name", "shape", "centre", "std"),
    [
        (
            "vision_tower.vision_model.embeddings.patch_embedding.weight",
            (8, 3, 14, 14),
            0.0,
            1 / math.sqrt(3 * 14 * 14),
        ),
        ("vision_tower.vision_model.embeddings.position_embedding.weight", (577, 8), 0.0, 1.0),
        ("vision_tower.vision_model.embeddings.class_embedding", (8,), 0.0, 1.0),
        ("vision_tower.vision_model.pre_layrnorm.weight", (8,), 1.0, 0.1),
        ("vision_tower.vision_model.pre_layrnorm.bias", (8,), 0.0, 0.02),
        ("multi_modal_projector.linear_1.weight", (16, 64), 0.0, 1 / 8),
        ("language_model.model.embed_tokens.weight", (100, 64), 0.0, 1.0),
        ("language_model.model.layers.0.input_layernorm.weight", (64,), 1.0, 0.1),
        ("language_model.model.layers.0.self_attn.k_proj.weight", (64, 64), 0.0, 1 / 8),
        ("language_model.model.layers.0.self_attn.q_proj.weight", (64, 64), 0.0, 4 / 8),
        ("language_model.lm_head.weight", (100, 64), 0.0, 1 / 8),
    ],
)
def test_distributions(name: str, shape: tuple[int, ...], centre: float, std: float) -> None:
    assert distribution_of(name, shape, tied_head=False) == Distribution(centre, pytest.approx(std))


def test_a_tied_embedding_has_the_scale_of_a_matrix() -> None:
    tied = distribution_of("language_model.model.embed_tokens.weight", (100, 64), tied_head=True)
    assert tied == Distribution(0.0, 1 / 8)
