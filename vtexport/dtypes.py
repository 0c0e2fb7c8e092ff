"""The element types: one table of what NumPy, ONNX, safetensors, TensorRT and the native libraries call each.

Nothing of ONNX or PyTorch is imported: who needs their objects makes them of the numbers and names here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

# Of the tensors that go in and out of graphs, as a manifest spells them
TensorType = Literal["float32", "float16", "bfloat16", "int64", "bool"]
# Of weights, and of what is computed with them
WeightType = Literal["float32", "float16", "bfloat16"]
# The same three as users say them
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class DType:
    """One element type."""

    name: str  # NumPy's, PyTorch's and the manifest's
    numpy: np.dtype  # of an array in memory, little-endian; bfloat16, which NumPy has not, as its bits in uint16
    onnx: int  # TensorProto.DataType
    safetensors: str
    tensorrt: str  # the member of tensorrt.DataType
    bits: int
    precision: Precision | None = None  # the users' word, where weights may have this type
    native: int | None = None  # vtx_dtype in plugins/include/vtx_ops.h, where an op takes features of this type

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory and in a file."""
        return self.numpy.itemsize


DTYPES: dict[str, DType] = {
    each.name: each
    for each in (
        DType("float32", np.dtype("<f4"), 1, "F32", "FLOAT", 32, "fp32", 0),
        DType("float16", np.dtype("<f2"), 10, "F16", "HALF", 16, "fp16", 1),
        DType("bfloat16", np.dtype("<u2"), 16, "BF16", "BF16", 16, "bf16", 2),
        DType("int64", np.dtype("<i8"), 7, "I64", "INT64", 64),
        DType("int32", np.dtype("<i4"), 6, "I32", "INT32", 32),
        DType("bool", np.dtype(np.bool_), 9, "BOOL", "BOOL", 8),
    )
}
WEIGHT_DTYPES: dict[str, DType] = {name: DTYPES[name] for name in get_args(WeightType)}
PRECISIONS: dict[str, DType] = {each.precision: each for each in WEIGHT_DTYPES.values() if each.precision}


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
