"""Weights in the bundle: copied byte for byte, widened exactly or rounded; hashed on the way, never read whole."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vtexport.assemble.finite import FiniteCheck
from vtexport.assemble.weights import PlacedWeights, copy_weights, planned_bytes
from vtexport.checkpoint.safetensors_index import read_index
from vtexport.errors import InputError
from vtexport.graphs.weight import Weight


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def values(folder: Path, weight: Weight) -> np.ndarray:
    data = np.memmap(folder / weight.file, np.uint8, "r", offset=weight.offset, shape=(weight.nbytes,))
    return data.view({"float32": np.float32, "float16": np.float16}[weight.dtype]).reshape(weight.shape)


def copied(source: Path, target: Path, precision: str = "float32") -> PlacedWeights:
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
    """Every half-precision number, subnormal ones included."""
    (tmp_path / "in").mkdir()
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    tensors = {
        "every": every[every.isfinite()].reshape(2, -1),
        "scalarish": torch.tensor([1.5], dtype=dtype),
        "other": torch.randn(3),
    }
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


def every_bfloat16() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def test_narrowing_rounds_to_nearest_even(tmp_path: Path) -> None:
    """Ties, subnormals and the largest number; what float16 can hold comes through exactly."""
    (tmp_path / "in").mkdir()
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    wide = every_bfloat16()
    tensors = {
        "exact": every[every.isfinite()].float(),
        "ties": torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11), 2**-25, 3 * 2**-25, 65519.99]),
        "bf16": wide[wide.isfinite() & (wide.float().abs() < 65504)],
        "random": torch.randn(1000),
    }
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    result = copied(tmp_path / "in", tmp_path / "out", "float16")
    for name, tensor in tensors.items():
        got = values(tmp_path / "out", result.tensors[name])
        np.testing.assert_array_equal(got.view(np.uint16), tensor.half().view(torch.int16).numpy().view(np.uint16))
    exact = values(tmp_path / "out", result.tensors["exact"])
    np.testing.assert_array_equal(exact.astype(np.float32), tensors["exact"].numpy())
    ties = values(tmp_path / "out", result.tensors["ties"]).tolist()
    assert ties == [1, 1 + 2**-9, -1, 0, 2**-23, 65504]
    assert result.written_hashes == {"model.safetensors": sha256(tmp_path / "out" / "model.safetensors")}


def test_narrowing_to_bfloat16_rounds_as_pytorch_does(tmp_path: Path) -> None:
    """Ties in both directions, carries into the exponent, subnormals, the largest number, float16 sources."""
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    patterns = np.concatenate(
        [bits, ties, ties - np.uint32(1), ties + np.uint32(1), np.uint32([0x7F7F7FFF, 0, 1 << 31])]
    )
    floats = torch.from_numpy(patterns.view(np.float32))
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    tensors = {
        "floats": floats[floats.bfloat16().isfinite()],
        "halves": halves[halves.isfinite()],
        "own": torch.ones(3),
    }
    tensors["own"] = tensors["own"].bfloat16()
    assert len(tensors["floats"]) > 790_000
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    copied(tmp_path / "in", tmp_path / "out", "bfloat16")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        for name, tensor in tensors.items():
            got = opened.get_tensor(name)
            assert got.dtype == torch.bfloat16
            assert torch.equal(got.view(torch.int16), tensor.bfloat16().view(torch.int16)), name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.4e38, r"tensor b holds 3.4e\+38, beyond bf16's largest number 3.38953e\+38; use --precision fp32"),
        (float("nan"), "tensor b holds NaN or infinite values"),
        (float("-inf"), "tensor b holds NaN or infinite values"),
    ],
)
def test_what_bf16_cannot_hold_is_named(tmp_path: Path, value: float, message: str) -> None:
    (tmp_path / "in").mkdir()
    tensor = torch.zeros(5_000_000)
    tensor[4_999_999] = value
    save_file({"a": torch.randn(3), "b": tensor}, tmp_path / "in" / "model.safetensors")
    with pytest.raises(InputError, match=message):
        copied(tmp_path / "in", tmp_path / "out", "bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_what_is_no_number_is_named(tmp_path: Path, value: float, dtype: torch.dtype, precision: str) -> None:
    """Copied byte for byte or converted, wherever it stands; what no tensor of the model holds is not looked at."""
    for number, place in enumerate((0, 600_000, 1_299_999)):
        folder, target = tmp_path / f"in{number}", tmp_path / f"out{number}"
        folder.mkdir()
        tensor = torch.zeros(1_300_000, dtype=dtype)
        tensor[place] = value
        save_file(
            {"a": torch.randn(3, dtype=dtype), "b": tensor, "c": torch.randn(5, dtype=dtype)},
            folder / "model.safetensors",
        )
        with pytest.raises(InputError, match="tensor b holds NaN or infinite values; the checkpoint is damaged"):
            copied(folder, target, precision)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_check_sees_numbers_across_pieces(size: int) -> None:
    good, bad = np.arange(40, dtype="<f4"), np.arange(40, dtype="<f4")
    bad[17] = np.inf

    def look(values: np.ndarray) -> None:
        data = memoryview(b"\xff" * 5 + values.tobytes() + b"\xff" * 9)
        check = FiniteCheck([("a", 5, 80, "float32"), ("b", 85, 80, "float32")])
        for start in range(0, len(data), size):
            check.look(data[start : start + size])

    look(good)
    with pytest.raises(InputError, match="tensor a holds"):
        look(bad)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (65520.0, torch.float32, "tensor b holds 65520, beyond fp16's largest number 65504; use --precision fp32"),
        (-1e30, torch.bfloat16, r"tensor b holds 1.00\d*e\+30, beyond"),
        (float("nan"), torch.float32, "tensor b holds NaN or infinite values"),
        (float("-inf"), torch.bfloat16, "tensor b holds NaN or infinite values"),
    ],
)
def test_what_fp16_cannot_hold_is_named(tmp_path: Path, value: float, dtype: torch.dtype, message: str) -> None:
    """The largest value of the tensor, wherever it stands in it."""
    (tmp_path / "in").mkdir()
    tensor = torch.zeros(5_000_000)
    tensor[3], tensor[4_999_999] = 65520.0 if value == value else 0.0, value
    save_file({"a": torch.randn(3), "b": tensor.to(dtype)}, tmp_path / "in" / "model.safetensors")
    with pytest.raises(InputError, match=message):
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
    with pytest.raises(InputError, match=r"model.safetensors changed while it was copied"):
        copy_weights(index, tmp_path / "out", "float32")
    path.unlink()
    with pytest.raises(InputError, match=r"model.safetensors vanished"):
        copy_weights(index, tmp_path / "out", "float32")
