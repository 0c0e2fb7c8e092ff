"""Weights in the bundle: copied byte for byte or widened exactly, hashed on the way, never read whole."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vtexport.checkpoint.safetensors_index import read_index
from vtexport.errors import InputError
from vtexport.export.weights import CopiedWeights, Weight, copy_weights, planned_bytes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def values(folder: Path, weight: Weight) -> np.ndarray:
    data = np.memmap(folder / weight.file, np.uint8, "r", offset=weight.offset, shape=(weight.nbytes,))
    return data.view({"float32": np.float32, "float16": np.float16}[weight.dtype]).reshape(weight.shape)


def copied(source: Path, target: Path, precision: str = "float32") -> CopiedWeights:
    target.mkdir()
    return copy_weights(read_index(source), target, precision)


def test_same_precision_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3)}
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    result = copied(tmp_path / "in", tmp_path / "out")
    written = tmp_path / "out" / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "in" / "model.safetensors").read_bytes()
    assert result.source_hashes == {"model.safetensors": sha256(written)}
    assert result.written_hashes == {"model.safetensors": sha256(written)}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(values(tmp_path / "out", result.tensors[name]), tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_widening_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every bit pattern of a half-precision number, subnormal, infinite and NaN ones included."""
    (tmp_path / "in").mkdir()
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    tensors = {"every": every.reshape(256, 256), "scalarish": torch.tensor([1.5], dtype=dtype), "other": torch.randn(3)}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    result = copied(tmp_path / "in", tmp_path / "out")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(values(tmp_path / "out", result.tensors[name]), tensor.float().numpy())
    path = tmp_path / "out" / "model.safetensors"
    assert result.written_hashes == {"model.safetensors": sha256(path)}
    assert result.source_hashes == {"model.safetensors": sha256(tmp_path / "in" / "model.safetensors")}
    with safe_open(path, "pt") as opened:  # what is written is a safetensors file for everyone else too
        assert sorted(opened.keys()) == sorted(tensors)
        assert torch.equal(opened.get_tensor("other"), tensors["other"])


def test_narrowing_is_refused_until_ranges_are_checked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"a": torch.randn(3)}, tmp_path / "in" / "model.safetensors")
    with pytest.raises(InputError, match="float32 cannot be exported as float16 yet; use --precision fp32"):
        copied(tmp_path / "in", tmp_path / "out", "float16")


def test_an_integer_tensor_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"steps": torch.arange(3)}, tmp_path / "in" / "model.safetensors")
    with pytest.raises(InputError, match="tensor steps has dtype I64"):
        copied(tmp_path / "in", tmp_path / "out")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"large": torch.zeros(120, 2**18, dtype=torch.float16)}, tmp_path / "in" / "model.safetensors")  # 63 MB
    tracemalloc.start()
    try:
        copied(tmp_path / "in", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * 2**20


def test_progress_counts_every_source_byte(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = tmp_path / "in" / "model.safetensors"
    save_file({"a": torch.randn(40, 30).half()}, path)
    counted: list[int] = []
    index = read_index(tmp_path / "in")
    copy_weights(index, tmp_path / "out", "float32", counted.append)
    assert sum(counted) == path.stat().st_size
    assert planned_bytes(index, "float32") == 40 * 30 * 4


def test_a_file_that_shrinks_or_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = tmp_path / "in" / "model.safetensors"
    save_file({"a": torch.randn(40, 30).half()}, path)
    index = read_index(tmp_path / "in")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.safetensors became shorter"):
        copy_weights(index, tmp_path / "out", "float32")
    path.unlink()
    with pytest.raises(InputError, match=r"model.safetensors vanished"):
        copy_weights(index, tmp_path / "out", "float32")
