"""Samples of tensors: nothing is left out of all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.bundle.proof_samples import (
    MOST_LOGITS,
    ROW_BYTES,
    deviation,
    logits_deviation,
    overlap,
    rows_deviation,
    sample_logits,
    sample_rows,
    stride_of,
)


@given(st.integers(1, 5000), st.integers(1, 8192), st.integers(1, 4))
def test_strides_are_odd_and_keep_the_limit(rows: int, width: int, cases: int) -> None:
    stride = stride_of(rows, width, cases)
    stored = -(-rows // stride)
    assert stride % 2 == 1
    assert stored == 1 or stored * width * 4 * cases <= ROW_BYTES
    smaller = -(-rows // max(1, stride - 2))
    assert stride == 1 or smaller * width * 4 * cases > ROW_BYTES


@given(st.integers(MOST_LOGITS + 1, 40_000), st.integers(0, 2**32 - 1))
def test_every_logit_is_seen(size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal(size).astype(np.float32)
    stored = sample_logits(logits)
    assert logits_deviation(logits, stored).largest == 0
    moved = logits.copy()
    moved[random.integers(size)] += 0.5
    assert logits_deviation(moved, stored).largest > 1e-3
    assert stored["top"][0] == logits.argmax()
    assert sum(each.nbytes for each in stored.values()) < 12_000


def test_few_logits_are_stored_whole() -> None:
    logits = np.arange(MOST_LOGITS, dtype=np.float32)
    assert np.array_equal(sample_logits(logits)["all"], logits)
    assert logits_deviation(logits[:-1], sample_logits(logits)).largest == float("inf")


def test_rows_of_any_shape() -> None:
    keys = np.random.default_rng(1).standard_normal((64, 4, 12)).astype(np.float32)
    stored = sample_rows(keys, 5)
    assert stored["rows"].shape == (13, 48)
    assert rows_deviation(keys, stored, 5).largest == 0
    assert rows_deviation(2 * keys, stored, 5).rms == pytest.approx(1.0)


def test_units() -> None:
    expected = np.full((4, 4), 2.0)
    found = expected.copy()
    found[0, 0] = 3.0
    got = deviation(found, expected)
    assert (got.rms, got.largest) == (0.125, 0.5)
    assert deviation(found * np.nan, expected).rms == float("inf")
    assert overlap(np.array([1, 2, 3]), np.array([3, 2, 9, 10])) == 0.5
