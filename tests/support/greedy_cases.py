"""What the tests of the greedy methods share: features that leave no choice to rounding, and hostile ones."""

from __future__ import annotations

from typing import Any

import numpy as np

TOKENS, WIDTH = 30, 24
HOSTILE = ["equal", "zero", "rank 1", "large", "tiny", "repeated", "opposite", "one token", "some zero", "beyond"]


def hostile(kind: str) -> np.ndarray:
    """[1, TOKENS, WIDTH] float32."""
    rng = np.random.default_rng(5)
    shape = (TOKENS, WIDTH)
    x: Any = {
        "equal": np.full(shape, 0.3),
        "zero": np.zeros(shape),
        "rank 1": (1 + rng.random((TOKENS, 1))) * rng.standard_normal((1, WIDTH)),
        "large": rng.standard_normal(shape) * 1e30,
        "tiny": rng.standard_normal(shape) * 1e-38,
        "repeated": np.repeat(rng.standard_normal((10, WIDTH)), 3, axis=0),
        "opposite": np.where(np.arange(TOKENS) % 2, 1, -1)[:, None] * rng.standard_normal((1, WIDTH)),
        "one token": np.eye(TOKENS)[4][:, None] * rng.standard_normal((1, WIDTH)),
        "some zero": rng.standard_normal(shape) * (np.arange(TOKENS) % 3 > 0)[:, None],
        "beyond": np.where(np.arange(TOKENS) % 2, 1e38, 1e-38)[:, None] * rng.standard_normal(shape).clip(-3, 3),
    }[kind]
    return x.astype(np.float32)[None]


def random_features(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)


def check_valid(found: np.ndarray, keep: int) -> None:
    """Exactly `keep` different patches, in the order of the image."""
    for image in found.tolist():
        assert len(image) == keep
        assert image == sorted(set(image))
        assert set(image) <= set(range(TOKENS))
