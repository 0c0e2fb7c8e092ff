"""Random inputs of native ops: features in the likeness of a vision tower's, of many odd sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from native_ops.calls import as_dtype, widened

TYPES = ("float32", "float16", "bfloat16")
GRIDS = ((8, 8), (5, 6), (9, 11), (12, 12), (16, 16), (7, 13), (1, 37), (10, 20), (24, 24))
WIDTHS = (24, 64, 72, 100, 128, 200, 256)


@dataclass(frozen=True)
class Draw:
    """The sizes of a case behind the vision tower."""

    grid: tuple[int, int]
    width: int
    batch: int
    dtype: str

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


def draw(rng: np.random.Generator, fixed: Mapping[str, Any]) -> Draw:
    """Sizes at random, the largest grids the rarest; `fixed` has those that are given."""
    grid = GRIDS[min(int(rng.integers(0, len(GRIDS))), int(rng.integers(0, len(GRIDS) + 4)))]
    drawn = {
        "grid": grid,
        "width": int(rng.choice(WIDTHS)),
        "batch": int(rng.choice((1, 1, 1, 2, 3))),
        "dtype": str(rng.choice(TYPES)),
    }
    return Draw(**{name: fixed.get(name, value) for name, value in drawn.items()})


def fields(rng: np.random.Generator, grid: tuple[int, int], width: int, batch: int, noise: float = 0.3) -> np.ndarray:
    """[batch, T, width] float64: smooth fields, blobs and a few large tokens over a grid, with noise."""
    tokens = grid[0] * grid[1]
    y, x = np.mgrid[: grid[0], : grid[1]] / np.reshape(grid, (2, 1, 1))
    images = []
    for _ in range(batch):
        maps = []
        for order in range(1, 13):
            phase, waves = rng.random(2) * 2 * np.pi, rng.integers(0, 1 + order // 3, 2)
            wave = np.cos(2 * np.pi * waves[0] * y + phase[0]) * np.cos(2 * np.pi * waves[1] * x + phase[1])
            maps.append(wave / order**0.5)
        for _ in range(12):
            center, size = rng.random(2), 0.05 + 0.15 * rng.random()
            maps.append(1.5 * np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * size**2)))
        image = 0.3 * rng.standard_normal(width)
        image = image + 0.6 * np.stack([each.ravel() for each in maps], 1) @ rng.standard_normal((len(maps), width))
        image = image + noise * rng.standard_normal((tokens, width))
        large = rng.choice(tokens, max(1, tokens // 100), replace=False)
        image[large] += 3 * rng.standard_normal(width)
        images.append(image)
    return np.stack(images)


def separated(rng: np.random.Generator, tokens: int, width: int, rank: int, batch: int) -> np.ndarray:
    """[batch, T, width] float64 features whose centred sigmoid has `rank` components of well separated strength."""
    ratio = (1 + 1 / rank) ** 0.5
    images = []
    for _ in range(batch):
        left, right = (np.linalg.qr(a - a.mean(0))[0] for a in (rng.standard_normal((tokens, rank)),
                                                              rng.standard_normal((width, rank))))  # fmt: skip
        y = (left * ratio ** -np.arange(rank)) @ right.T
        y = 0.5 + 0.45 * y / np.abs(y).max()
        images.append(np.log(y / (1 - y)))
    return np.stack(images)


def rounded(features: np.ndarray, dtype: str) -> np.ndarray:
    """Features as the op of that type sees them, float32."""
    return widened(as_dtype(features, dtype), dtype)
