"""Check that weights are numbers: NaN and infinity are found on the way through, with the tensor's name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vtexport.checkpoint.float_values import infinity_bits
from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import InputError

# The exponent bits, all of them set in infinity and NaN alone, in the integer of the type's size
_EXPONENTS = {name: infinity_bits(dtype) for name, dtype in WEIGHT_DTYPES.items()}


def is_finite(data: bytes | memoryview, dtype: str) -> bool:
    """True where little-endian `data` of that type holds neither infinity nor NaN."""
    exponent = _EXPONENTS[dtype]
    return not (np.frombuffer(data, exponent.dtype) & exponent == exponent).any()


class FiniteCheck:
    """Looks at a file's bytes as they pass, in order and in pieces of any size.

    Made with (name, offset, bytes, type) of the tensors in the file.
    """

    def __init__(self, tensors: Iterable[tuple[str, int, int, str]]):
        self._tensors = sorted(tensors, key=lambda each: each[1], reverse=True)
        self._position = 0
        self._left = b""  # of a number whose other bytes come with the next piece

    def look(self, piece: memoryview) -> None:
        """The next bytes of the file.

        Raises:
            InputError: a tensor in them holds NaN or infinity.
        """
        end = self._position + len(piece)
        while self._tensors and self._tensors[-1][1] < end:
            name, offset, nbytes, dtype = self._tensors[-1]
            seen: bytes | memoryview = piece[max(0, offset - self._position) : offset + nbytes - self._position]
            if self._left:
                seen, self._left = self._left + bytes(seen), b""
            whole = len(seen) // _EXPONENTS[dtype].itemsize * _EXPONENTS[dtype].itemsize
            if not is_finite(seen[:whole], dtype):
                raise InputError(not_finite(name))
            if offset + nbytes > end:
                self._left = bytes(seen[whole:])
                break
            self._tensors.pop()
        self._position = end


def not_finite(name: str) -> str:
    """The sentence about a tensor with NaN or infinity in it."""
    return f"tensor {name} holds NaN or infinite values; the checkpoint is damaged, fetch it again"
