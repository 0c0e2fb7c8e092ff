"""The values of stored tensors, compared without holding them."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from vtexport.checkpoint.float_values import to_float32
from vtexport.checkpoint.safetensors_index import DTYPE_BYTES, WEIGHT_FORMATS, TensorEntry
from vtexport.errors import InputError, quoted

_CHUNK_VALUES = 1 << 18


def same_values(first: TensorEntry, second: TensorEntry) -> bool:
    """Whether two tensors in F16, BF16 or F32 hold the same numbers, as torch.equal has it: NaN equals nothing.

    Both are read in chunks, up to the first difference.

    Raises:
        InputError: a file cannot be read, or is shorter than its header said.
    """
    if first.shape != second.shape:
        return False
    count = first.nbytes // DTYPE_BYTES[first.dtype]
    try:
        with first.file.open("rb") as one, second.file.open("rb") as other:
            one.seek(first.offset)
            other.seek(second.offset)
            for start in range(0, count, _CHUNK_VALUES):
                wanted = min(_CHUNK_VALUES, count - start)
                left, right = _values(one, first, wanted), _values(other, second, wanted)
                if left.size != wanted or right.size != wanted:
                    short = first.file if left.size != wanted else second.file
                    raise InputError(f"{short} changed while it was read; restore the checkpoint and build again")
                if not np.array_equal(left, right):
                    return False
    except OSError as error:
        raise InputError(
            f"{first.file} or {second.file} cannot be read ({quoted(error)}); restore the checkpoint"
        ) from error
    return True


def _values(file: BinaryIO, entry: TensorEntry, count: int) -> np.ndarray:
    """The next values as float32, which holds every number of the three types; fewer where the file ends."""
    size = DTYPE_BYTES[entry.dtype]
    data = file.read(count * size)
    data = data[: len(data) - len(data) % size]
    return to_float32(data, WEIGHT_FORMATS[entry.dtype])
