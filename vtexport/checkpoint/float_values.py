"""Numbers of the types that weights are stored in, as float32 and back."""

from __future__ import annotations

import numpy as np

from vtexport.dtypes import DType


def to_float32(data: bytes | memoryview, dtype: DType) -> np.ndarray:
    """[count] float32 of stored numbers of a weights' type; exact, whichever it is."""
    stored = np.frombuffer(data, dtype.numpy)
    if dtype.name == "bfloat16":  # the upper half of a float32
        return (stored.astype("<u4") << np.uint32(16)).view("<f4")
    return stored.astype("<f4")


def from_float32(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Float32 numbers rounded to nearest, ties to even, in a weights' type; NaN stays NaN.

    A number beyond the type's range becomes infinity, with NumPy's warning of an overflow for float16.
    """
    if dtype.name != "bfloat16":
        return values.astype(dtype.numpy, copy=False)
    bits = values.view("<u4")
    upper = (bits >> np.uint32(16)).astype("<u2")
    lower = bits & np.uint32(0xFFFF)
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper & 1 == 1))
    # A carry into the exponent is right: the next power of two, or infinity.
    return np.where(np.isnan(values), upper | np.uint16(0x40), upper + up.astype("<u2"))


def infinity_bits(dtype: DType) -> np.unsignedinteger:
    """The bits of infinity in a weights' type, as an unsigned integer of its size: those of the exponent, all set."""
    return from_float32(np.array([np.inf], "<f4"), dtype).view(f"<u{dtype.itemsize}")[0]


def largest(dtype: DType) -> float:
    """The largest number of a weights' type."""
    return float(to_float32((infinity_bits(dtype) - infinity_bits(dtype).dtype.type(1)).tobytes(), dtype)[0])
