"""Conversion between float32 and the types that weights are stored in, held to PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtexport.checkpoint.float_values import from_float32, infinity_bits, largest, to_float32
from vtexport.dtypes import WEIGHT_DTYPES, DType

WEIGHTS = pytest.mark.parametrize("dtype", WEIGHT_DTYPES.values(), ids=WEIGHT_DTYPES)


def some_numbers() -> np.ndarray:
    """[N] float32: of every size, at the edges of float16 and bfloat16, and halfway between two of theirs."""
    bits = np.random.default_rng(3).integers(0, 2**32, 20_000, dtype=np.uint32)
    halfway = bits & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    edges = np.array([0, -0.0, 65504, 65519, 65520, 6e-8, 3.3895314e38, 3.4028235e38, np.inf, -np.inf], np.float32)
    numbers = np.concatenate([bits.view(np.float32), halfway.view(np.float32), edges])
    return numbers[~np.isnan(numbers)]


@WEIGHTS
def test_conversion_is_pytorchs(dtype: DType) -> None:
    numbers = some_numbers()
    expected = torch.from_numpy(numbers).to(getattr(torch, dtype.name))
    with np.errstate(over="ignore"):
        stored = from_float32(numbers, dtype)
    assert stored.dtype == dtype.numpy
    assert stored.tobytes() == expected.view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy().tobytes()
    np.testing.assert_array_equal(to_float32(stored.tobytes(), dtype), expected.to(torch.float32).numpy())


@WEIGHTS
def test_nan_stays_nan(dtype: DType) -> None:
    """Also one whose bits are all in the half that bfloat16 drops."""
    numbers = np.array([0x7FC00000, 0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(to_float32(from_float32(numbers, dtype).tobytes(), dtype)).all()


@WEIGHTS
def test_infinity_and_the_largest_number(dtype: DType) -> None:
    known = torch.finfo(getattr(torch, dtype.name))
    assert largest(dtype) == known.max
    assert to_float32(infinity_bits(dtype).tobytes(), dtype).tolist() == [np.inf]
