"""Every runtime that opens: its buffers against NumPy, its answers against ONNX Runtime's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vtexport.backends.base import Backend, Cache
from vtexport.backends.registry import open_backend, runtimes
from vtexport.runtime import pipeline as pipeline_module
from vtexport.runtime.pipeline import Pipeline

OPEN = [name for name, runtime in runtimes().items() if runtime.open is not None]
PLAN, QUESTION = "prunesid-16", "What is on the table?"


@pytest.fixture(params=OPEN)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with contextlib.closing(open_backend(request.param)) as opened:
        yield opened


def block(rows: int, start: float = 0.0) -> np.ndarray:
    return np.arange(rows * 4, dtype=np.float32).reshape(1, rows, 4) + np.float32(start)


def test_blocks(backend: Backend) -> None:
    first, second = backend.upload(block(3)), backend.upload(block(2, 100))
    joined = backend.join([first, second])
    assert (joined.shape, joined.dtype) == ((1, 5, 4), "float32")
    np.testing.assert_array_equal(joined.numpy(), np.concatenate([block(3), block(2, 100)], axis=1))
    np.testing.assert_array_equal(backend.first_rows(joined, 4).numpy(), joined.numpy()[:, :4])
    assert backend.adopt(first) is first
    backend.sync()


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_values_that_are_not_finite(backend: Backend, value: float) -> None:
    array = block(3)
    array[0, 1, 2] = value
    assert backend.is_finite(backend.upload(array)) == np.isfinite(value)


def test_logits(backend: Backend) -> None:
    logits = backend.read(backend.upload(block(1).astype(np.float16)))
    assert (logits.dtype, logits.tolist()) == (np.float32, [0, 1, 2, 3])


def test_a_cache(backend: Backend) -> None:
    cache = backend.cache(range(2, 3), 4, 2, 4, "float32")
    assert cache.past()["past_key_values.2.key"].shape == (1, 0, 2, 4)
    for rows in (3, 1):
        new = np.full((1, rows, 2, 4), rows, np.float32)
        cache.append({f"new_key_values.2.{kind}": backend.upload(new) for kind in ("key", "value")})
    assert (cache.length, cache.capacity) == (4, 4)
    assert cache.past()["past_key_values.2.value"].numpy()[0, :, 0, 0].tolist() == [3, 3, 3, 1]
    with pytest.raises(IndexError):
        cache.append({f"new_key_values.2.{kind}": backend.upload(new) for kind in ("key", "value")})


def filled(backend: Backend, rows: int, capacity: int) -> Cache:
    cache = backend.cache(range(2, 3), capacity, 2, 4, "float32")
    new = np.arange(rows * 8, dtype=np.float32).reshape(1, rows, 2, 4)
    cache.append({f"new_key_values.2.{kind}": backend.upload(new) for kind in ("key", "value")})
    return cache


@pytest.mark.parametrize("capacity", [2, 4, 9])
def test_a_cache_goes_on(backend: Backend, capacity: int) -> None:
    cache = filled(backend, 4, 4)
    cache.go_on(2, capacity)
    assert (cache.length, cache.past()["past_key_values.2.key"].shape) == (2, (1, 2, 2, 4))
    assert cache.capacity >= capacity
    new = np.full((1, 2, 2, 4), -1, np.float32)
    cache.append({f"new_key_values.2.{kind}": backend.upload(new) for kind in ("key", "value")})
    assert cache.past()["past_key_values.2.value"].numpy()[0, :, 0, 0].tolist() == [0, 8, -1, -1]


def test_a_cache_goes_on_from_nothing_and_not_from_more_than_it_holds(backend: Backend) -> None:
    cache = filled(backend, 3, 4)
    with pytest.raises(IndexError):
        cache.go_on(4, 8)
    cache.go_on(0, 8)
    assert cache.past()["past_key_values.2.key"].shape == (1, 0, 2, 4)


@pytest.mark.parametrize("runtime", OPEN)
def test_answers(runtime: str, tiny_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Pipeline.open(tiny_bundle, PLAN).generate(photo, QUESTION, max_new_tokens=8)
    monkeypatch.setattr(pipeline_module, "open_backend", lambda device, threads: open_backend(runtime, device, threads))
    with Pipeline.open(tiny_bundle, PLAN) as pipeline:
        answer = pipeline.generate(photo, QUESTION, max_new_tokens=8)
    assert (answer.token_ids, answer.keep_indices) == (expected.token_ids, expected.keep_indices)
