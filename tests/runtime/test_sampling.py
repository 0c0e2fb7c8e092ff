from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.errors import UsageError
from vtexport.runtime.sampling import Sampler

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def test_greedy_takes_the_lower_id_on_ties() -> None:
    assert Sampler()(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(temperature=1.0, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.15, 0.1], atol=0.015)


def test_temperature_sharpens() -> None:
    sampler = Sampler(temperature=0.5, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=4) / 20_000
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(counts, squares / squares.sum(), atol=0.015)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.4, {0}), (0.6, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_nucleus(top_p: float, allowed: set[int]) -> None:
    sampler = Sampler(temperature=1.0, top_p=top_p, seed=3)
    assert {sampler(LOGITS) for _ in range(2000)} == allowed


def test_same_seed_same_tokens() -> None:
    first, second, other = (Sampler(1.0, seed=seed) for seed in (7, 7, 8))
    draws = [[sampler(LOGITS) for _ in range(50)] for sampler in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32),
)
def test_always_a_token(logits: list[float], temperature: float, top_p: float, seed: int) -> None:
    assert 0 <= Sampler(temperature, top_p, seed)(np.array(logits, np.float32)) < len(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(**options)  # type: ignore[arg-type]
