from __future__ import annotations

import numpy as np
import pytest

from vtexport.backends.onnxruntime.host import HostBuffer, HostCache


def rows(count: int, value: float) -> dict[str, HostBuffer]:
    shape = (1, count, 2, 4)
    return {
        f"new_key_values.{layer}.{kind}": HostBuffer(np.full(shape, value, np.float32))
        for layer in (3, 4)
        for kind in ("key", "value")
    }


def test_appends_behind_the_rows_before() -> None:
    cache = HostCache(range(3, 5), 5, 2, 4, "float32")
    assert cache.past()["past_key_values.3.key"].shape == (1, 0, 2, 4)
    cache.append(rows(3, 1.0))
    cache.append(rows(1, 2.0))
    past = cache.past()
    assert set(past) == {f"past_key_values.{layer}.{kind}" for layer in (3, 4) for kind in ("key", "value")}
    np.testing.assert_array_equal(past["past_key_values.4.value"].numpy()[0, :, 0, 0], [1, 1, 1, 2])


def test_past_is_a_view_not_a_copy() -> None:
    """A graph gets a pointer into the one buffer: contiguous, and never copied."""
    cache = HostCache(range(3, 5), 5, 2, 4, "float32")
    cache.append(rows(3, 1.0))
    first = cache.past()["past_key_values.3.key"].numpy()
    cache.append(rows(1, 2.0))
    second = cache.past()["past_key_values.3.key"].numpy()
    assert first.flags.c_contiguous
    assert np.shares_memory(first, second)
    assert cache.nbytes == 4 * 5 * 2 * 4 * 4


def test_a_full_cache_is_an_error_not_an_overwrite() -> None:
    cache = HostCache(range(3, 5), 2, 2, 4, "float32")
    with pytest.raises(IndexError):
        cache.append(rows(3, 1.0))
