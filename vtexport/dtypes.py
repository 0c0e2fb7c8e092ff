"""The element types: one table of what NumPy, ONNX, safetensors, TensorRT and the native libraries call each.

None of them is imported: who needs their objects makes them of the numbers and names here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

# Of the tensors that go in and out of graphs, as a manifest spells them
TensorType = Literal["float32", "float16", "bfloat16", "int64", "bool"]
# Of weights, and of what is computed with them
WeightType = Literal["float32", "float16", "bfloat16"]
# Of weights as they are stored
StoredType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
# The same three as users say them
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class DType:
    """One element type."""

    name: str  # NumPy's, PyTorch's and the manifest's
    code: str  # NumPy's, of an array in memory, little-endian; bfloat16, which NumPy has not, as its bits in uint16
    onnx: int  # TensorProto.DataType
    safetensors: str
    tensorrt: str  # the member of tensorrt.DataType
    bits: int
    precision: Precision | None = None  # the users' word, where weights may have this type
    native: int | None = None  # vtx_dtype in plugins/include/vtx_ops.h, where an op takes features of this type

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number of a type of `WeightType`."""
        return float(2.0 ** -{"F32": 23, "F16": 10, "BF16": 7}[self.safetensors])

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory and in a file."""
        return self.bits // 8

    @property
    def numpy(self) -> np.dtype:
        """NumPy's type with this `code`."""
        import numpy as np  # late, for processes that read a manifest and compute nothing

        return np.dtype(self.code)


DTYPES: dict[str, DType] = {
    each.name: each
    for each in (
        DType("float32", "<f4", 1, "F32", "FLOAT", 32, "fp32", 0),
        DType("float16", "<f2", 10, "F16", "HALF", 16, "fp16", 1),
        DType("bfloat16", "<u2", 16, "BF16", "BF16", 16, "bf16", 2),
        DType("int64", "<i8", 7, "I64", "INT64", 64),
        DType("int32", "<i4", 6, "I32", "INT32", 32),
        DType("bool", "|b1", 9, "BOOL", "BOOL", 8),
    )
}
WEIGHT_DTYPES: dict[str, DType] = {name: DTYPES[name] for name in get_args(WeightType)}
PRECISIONS: dict[str, DType] = {each.precision: each for each in WEIGHT_DTYPES.values() if each.precision}
