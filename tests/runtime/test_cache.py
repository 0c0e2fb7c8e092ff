from __future__ import annotations

import numpy as np
import pytest

from vtexport.runtime.cache import KVCache


def rows(count: int, value: float) -> dict[str, np.ndarray]:
    shape = (1, count, 2, 4)
    return {
        f"new_key_values.{layer}.{kind}": np.full(shape, value, np.float32)
        for layer in (3, 4)
        for kind in ("key", "value")
    }


def test_appends_behind_the_rows_before() -> None:
    cache = KVCache(range(3, 5), 5, 2, 4, np.dtype(np.float32))
    assert cache.past()["past_key_values.3.key"].shape == (1, 0, 2, 4)
    cache.append(rows(3, 1.0))
    cache.append(rows(1, 2.0))
    past = cache.past()
    assert set(past) == {f"past_key_values.{layer}.{kind}" for layer in (3, 4) for kind in ("key", "value")}
    np.testing.assert_array_equal(past["past_key_values.4.value"][0, :, 0, 0], [1, 1, 1, 2])


def test_past_is_a_view_not_a_copy() -> None:
    """A graph gets a pointer into the one buffer: contiguous, and never copied."""
    cache = KVCache(range(3, 5), 5, 2, 4, np.dtype(np.float32))
    cache.append(rows(3, 1.0))
    first = cache.past()["past_key_values.3.key"]
    cache.append(rows(1, 2.0))
    second = cache.past()["past_key_values.3.key"]
    assert first.flags.c_contiguous
    assert np.shares_memory(first, second)
    assert cache.nbytes == 4 * 5 * 2 * 4 * 4


def test_a_full_cache_is_an_error_not_an_overwrite() -> None:
    cache = KVCache(range(3, 5), 2, 2, 4, np.dtype(np.float32))
    with pytest.raises(IndexError):
        cache.append(rows(3, 1.0))
