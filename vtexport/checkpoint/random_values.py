"""Seeded random weight values, the same bytes on every machine and with every version of numpy.

A tensor's values come from the raw bits of PCG64, whose stream is fixed by its definition, with the state taken from
a hash of the seed and the tensor's name. Each value uses 16 of these bits: it is one of 65,536 evenly spaced levels,
looked up in a table that is already in the weights' dtype, so only exactly rounded operations take part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vtexport.checkpoint.float_values import from_float32
from vtexport.dtypes import WEIGHT_DTYPES

CHUNK_VALUES = 1 << 20  # a multiple of 4, the values that one 64-bit draw gives
_LEVELS = 1 << 16
_VALUES_PER_DRAW = 4
_QUERY_GAIN = 4.0


@dataclass(frozen=True)
class Distribution:
    """Uniform around `centre` with standard deviation `std`."""

    centre: float
    std: float


def distribution_of(name: str, shape: tuple[int, ...], *, tied_head: bool) -> Distribution:
    """How a tensor is filled so that activations neither die out nor blow up and every tensor leaves a trace.

    Norm weights lie around 1, biases are small and not zero, embedding rows have unit scale, and matrices and
    convolutions keep the scale of their input (standard deviation 1 / sqrt(fan_in)). Query matrices are larger:
    attention then singles tokens out as in a trained model, and answers depend on image, prompt and positions; without
    it every row becomes the average of hundreds of visual tokens and the answer is one token repeated.
    """
    if name.endswith("bias"):
        return Distribution(0.0, 0.02)
    if len(shape) == 1 and name.endswith("weight"):
        return Distribution(1.0, 0.1)
    if len(shape) <= 2 and _is_embedding(name):
        # As the output matrix too, rows of unit elements would make every token predict itself whatever it sees.
        tied = tied_head and name.endswith("embed_tokens.weight")
        return Distribution(0.0, 1 / math.sqrt(shape[-1]) if tied else 1.0)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else max(1, math.prod(shape))
    gain = _QUERY_GAIN if name.endswith("q_proj.weight") else 1.0
    return Distribution(0.0, gain / math.sqrt(max(1, fan_in)))


def value_chunks(name: str, count: int, distribution: Distribution, *, dtype: str, seed: int) -> Iterator[np.ndarray]:
    """`count` values of the tensor in order, as arrays of at most CHUNK_VALUES; bfloat16 comes as its uint16 bits.

    `dtype` is "float16", "bfloat16" or "float32"; all arrays are little-endian.
    """
    table = _level_table(distribution, dtype)
    bits = _bit_generator(name, seed)
    for start in range(0, count, CHUNK_VALUES):
        wanted = min(CHUNK_VALUES, count - start)
        draws = bits.random_raw(-(-wanted // _VALUES_PER_DRAW))
        levels = np.asarray(draws, dtype="<u8").view("<u2")[:wanted]
        yield table[levels]


def _is_embedding(name: str) -> bool:
    """`embed_tokens.weight`, `embeddings.position_embedding.weight`, `embeddings.class_embedding`."""
    return any("embed" in part for part in name.split(".")[-2:])


def _bit_generator(name: str, seed: int) -> np.random.PCG64:
    digest = hashlib.sha256(f"vtexport random weights:{seed}:{name}".encode()).digest()
    bits = np.random.PCG64(0)
    bits.state = {
        "bit_generator": "PCG64",
        "state": {
            "state": int.from_bytes(digest[:16], "little"),
            "inc": int.from_bytes(digest[16:], "little") | 1,  # PCG needs an odd increment
        },
        "has_uint32": 0,
        "uinteger": 0,
    }
    return bits


def _level_table(distribution: Distribution, dtype: str) -> np.ndarray:
    half_width = distribution.std * math.sqrt(3)  # of a uniform distribution with that deviation
    steps = (np.arange(_LEVELS, dtype=np.float64) - (_LEVELS - 1) / 2) / (_LEVELS / 2)
    values = distribution.centre + half_width * steps
    if dtype not in WEIGHT_DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(WEIGHT_DTYPES)}")
    if dtype == "float16":
        return values.astype("<f2")  # not by way of float32, which would round twice
    return from_float32(values.astype("<f4"), WEIGHT_DTYPES[dtype])
