"""The clustering that ViTCoP uses: examples worked out by hand, and the properties that its two rules promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from array_api_compat import numpy as xp_numpy
from array_api_compat import torch as xp_torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtexport.pruning.density_peaks import PeakRules, density_peaks


def run(points: list[float] | np.ndarray, rules: PeakRules, near: np.ndarray | None = None) -> dict[str, Any]:
    rows = np.asarray(points, dtype=np.float64).reshape(len(points), -1)
    everywhere = np.ones((len(rows), len(rows)), bool)
    return density_peaks(xp_numpy, rows, everywhere if near is None else near, rules)


def test_two_heaps() -> None:
    """Around 0 and around 50; the middle of the larger heap has no denser point, that of the other only far away."""
    found = run([1, 0, -1.5, 49, 50, 51.5, 48.5], PeakRules(cutoff=2, centers=2))
    assert found["centers"].tolist() == [3, 1]  # no denser one; then 0, 48.5 away from one
    assert found["labels"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found["delta"].tolist()[3] == math.inf
    np.testing.assert_allclose(found["delta"][[0, 1, 4]], [1, 48.5, 1], rtol=1e-8)
    assert found["parent"][[0, 1, 2, 4, 5, 6]].tolist() == [1, 6, 1, 3, 4, 3]
    terms = [math.exp(-(d**2) / 4) for d in (1, 2.5)]
    np.testing.assert_allclose(found["density"][0], 1 + sum(terms), rtol=1e-6)


def test_a_point_in_its_own_density() -> None:
    points = [0, 1, 3, 7]
    with_itself, without = (run(points, PeakRules(cutoff=2, centers=1, counts_itself=each)) for each in (True, False))
    np.testing.assert_allclose(with_itself["density"], without["density"] + 1, rtol=1e-6)
    np.testing.assert_array_equal(with_itself["parent"], without["parent"])


def test_equal_densities_hang_on_each_other_or_on_the_lower_index() -> None:
    """Pairs at 0 and 10: all four densities are equal, so under the loose rule each pair is a ring."""
    points = [0, 1, 10, 11]
    loose = run(points, PeakRules(cutoff=0.5, centers=1))
    assert loose["parent"].tolist() == [1, 0, 3, 2]
    assert loose["centers"].tolist() == [0]
    assert loose["labels"].tolist() == [0, 0, -1, -1]
    strict = run(points, PeakRules(cutoff=0.5, centers=1, strict=True))
    assert strict["labels"].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(strict["delta"], [11, 1, 9, 1], atol=1e-6)


def test_points_out_of_reach() -> None:
    """Without anything near, every point stands alone: it hangs on point 0 or joins the nearest centre."""
    points, alone = [0, 1, 5, 9, 8.4], np.eye(5, dtype=bool)
    loose = run(points, PeakRules(cutoff=1, centers=2), alone)
    assert loose["delta"].tolist() == [math.inf] * 5
    assert loose["centers"].tolist() == [0, 1]
    assert loose["labels"].tolist() == [0, 1, 0, 0, 0]
    far_first = run(points[::-1], PeakRules(cutoff=1, centers=2, strict=True), alone)
    assert far_first["centers"].tolist() == [1, 2], "the densest point's delta is finite"
    assert far_first["labels"].tolist() == [0, 0, 1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20), grains=st.sampled_from([0, 2, 5]), strict=st.booleans()
)
def test_properties(seed: int, count: int, grains: int, strict: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, 3))
    if grains:  # many equal points
        points = np.round(points * grains / 3)
    near = rng.random((count, count)) < 0.6
    near = near | near.T | np.eye(count, dtype=bool)
    centers = int(rng.integers(1, count + 1))
    found = run(points, PeakRules(cutoff=1, centers=centers, strict=strict), near)
    labels = found["labels"]
    assert len(set(found["centers"].tolist())) == centers
    assert labels[found["centers"]].tolist() == list(range(centers))
    assert labels.min() >= (0 if strict else -1)
    assert labels.max() < centers
    is_center = np.isin(np.arange(count), found["centers"])
    finite = np.isfinite(found["delta"])
    moves = ~is_center & (finite if not strict else _hangs(found, near))
    np.testing.assert_array_equal(labels[moves], labels[found["parent"]][moves])
    same = density_peaks(
        xp_torch,
        xp_torch.from_numpy(points),
        xp_torch.from_numpy(near),
        PeakRules(cutoff=1, centers=centers, strict=strict),
    )
    if not grains:
        np.testing.assert_array_equal(same["labels"], labels)
    assert {each: tuple(value.shape) for each, value in same.items()} == {
        each: value.shape for each, value in found.items()
    }


def _hangs(found: dict[str, Any], near: np.ndarray) -> np.ndarray:
    """Points that have a denser one near under the strict rule."""
    density, index = found["density"], np.arange(len(near))
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (index[None] < index[:, None]))
    return (denser & near).any(1)


@pytest.mark.parametrize("strict", [False, True])
def test_one_point(strict: bool) -> None:
    found = run([3.0], PeakRules(cutoff=1, centers=1, strict=strict))
    assert found["labels"].tolist() == [0]
    assert found["parent_margin"] == found["density_margin"] == found["center_margin"] == math.inf
