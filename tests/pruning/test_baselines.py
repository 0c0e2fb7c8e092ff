"""The methods that look at no image: random, uniform and pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vtexport.errors import UsageError
from vtexport.pruning import op_model, select

FEATURES = np.random.default_rng(3).standard_normal((2, 576, 8)).astype(np.float32)


def test_uniform_takes_the_middle_of_equal_runs() -> None:
    assert select("uniform", FEATURES[:, :16], keep=4).keep_indices.tolist() == [[2, 6, 10, 14]] * 2
    assert select("uniform", FEATURES[:, :9], keep=2).keep_indices.tolist() == [[2, 6]] * 2
    assert select("uniform", FEATURES, keep=576).keep_indices[0].tolist() == list(range(576))


def test_random_is_the_seeds() -> None:
    """NumPy's frozen generator: these numbers must never change, or bundles would differ between machines."""
    assert select("random", FEATURES, keep=6).keep_indices[0].tolist() == sorted(
        np.random.RandomState(44).permutation(576)[:6].tolist()
    )
    first, second = (select("random", FEATURES, keep=64, seed=seed).keep_indices[0].tolist() for seed in (1, 2))
    assert first != second
    assert first == sorted(first)


@pytest.mark.parametrize(
    ("grid", "coarse"), [((24, 24), (8, 8)), ((24, 24), (7, 7)), ((12, 48), (4, 16)), ((4, 4), (4, 4))]
)
def test_pool_is_adaptive_average_pooling(grid: tuple[int, int], coarse: tuple[int, int], stock: Any) -> None:
    features = FEATURES[:, : grid[0] * grid[1]]
    image = torch.from_numpy(features).transpose(1, 2).unflatten(2, grid)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, coarse).flatten(2).transpose(1, 2).numpy()
    keep = coarse[0] * coarse[1]
    found = select("pool", features, keep=keep, grid=grid)
    np.testing.assert_allclose(found.kept_features, expected, atol=1e-6)
    assert found.merged.tolist() == [[grid != coarse] * keep] * 2
    by_onnx = stock(op_model("pool", tokens=grid[0] * grid[1], grid=grid, width=8, keep=keep, batch=2))(
        features=features
    )
    np.testing.assert_allclose(by_onnx["kept_features"], expected, atol=1e-6)
    np.testing.assert_array_equal(by_onnx["keep_indices"], found.keep_indices)
    np.testing.assert_array_equal(by_onnx["merged"], found.merged)


@pytest.mark.parametrize(
    ("keep", "grid", "message"),
    [(128, (24, 24), "give 121 or 144"), (2, (24, 24), "give 1 or 4"), (100, (20, 30), "give 96 or 117")],
)
def test_pool_refuses_what_no_grid_gives(keep: int, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        op_model("pool", tokens=grid[0] * grid[1], grid=grid, width=8, keep=keep)


@pytest.mark.parametrize("method", ["pool", "nuwa", "vitcop"])
def test_methods_that_need_a_grid_ask_for_it_first(method: str) -> None:
    with pytest.raises(UsageError, match=rf"{method} needs grid=\(rows, columns\), and 48 patches are no square"):
        op_model(method, tokens=48, width=8, keep=5)
