"""Pieces that several methods' ONNX functions are made of, in the opset-20 operators every runtime has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vtexport.pruning.eigen import TINY
from vtexport.pruning.emit import FLOAT, INT64, Emitter
from vtexport.pruning.ties import LONGEST, SHORTEST

TAKEN = -1e30  # added to the gain of a token that has been picked, so that no value can pick it again


def per_image(e: Emitter, batch: int, inputs: Sequence[str], image: Callable[..., dict[str, str]]) -> dict[str, str]:
    """`image(*inputs)` for every image of the batch, each input cut to [1, ...]; results joined along the first axis.

    One image after the other: the loops of each run as long as it needs, and no image depends on another.
    """
    results = []
    for index in range(batch):
        own = [e.Slice(each, [index], [index + 1], [0]) for each in inputs] if batch > 1 else list(inputs)
        results.append(image(*own))
    if batch == 1:
        return results[0]
    return {name: e.Concat(*(result[name] for result in results), axis=0) for name in results[0]}


def patch_rows(e: Emitter, features: str, tokens: int, *, cls_rows: int) -> str:
    """[T, D] float32 patch rows of one image's `features` [1, c + T, D]."""
    rows = e.Squeeze(features, [0])
    return e.as_float(e.Slice(rows, [cls_rows], [cls_rows + tokens], [0]) if cls_rows else rows)


def gather_rows(e: Emitter, features: str, rows: str) -> str:
    """[B, N, D]: the rows `rows` [B, N] int64 of `features` [B, R, D], bits unchanged."""
    return str(e.GatherND(features, e.Unsqueeze(rows, [2]), batch_dims=1))


def in_raster_order(e: Emitter, chosen: str, count: int) -> str:
    """`chosen` [1, count] int64, ascending."""
    return str(e.TopK(chosen, [count], outputs=2, axis=1, largest=0)[0])


def gram(e: Emitter, y: str, tokens: int) -> str:
    """y yᵀ [T, T] of y [T, D]. It is symmetric: of its four quarters three are computed."""
    half = tokens // 2
    if not half:
        return str(e.Gemm(y, y, transB=1))
    upper, lower = e.Split(y, [half, tokens - half], outputs=2, axis=0)
    corner = e.Gemm(upper, lower, transB=1)
    first = e.Concat(e.Gemm(upper, upper, transB=1), corner, axis=1)
    second = e.Concat(e.Transpose(corner), e.Gemm(lower, lower, transB=1), axis=1)
    return str(e.Concat(first, second, axis=0))


def cosine_rows(e: Emitter, rows: str) -> str:
    """`rows` [T, D] scaled to norm 1; a zero row stays zero."""

    def units(b: Emitter, rows: str, square: str) -> str:
        return str(b.Mul(rows, b.Reciprocal(b.Sqrt(b.Max(TINY, square)))))

    def scaled(b: Emitter) -> list[str]:
        small = b.Mul(rows, range_scale(b, rows))
        return [units(b, small, b.total(b.Mul(small, small), 1))]

    square = e.total(e.Mul(rows, rows), 1)
    return e.choose(squares_fit(e, square), lambda b: [units(b, rows, square)], scaled, [FLOAT])[0]


def row_norms(e: Emitter, rows: str) -> str:
    """[T, 1]: the norms of `rows` [T, D]."""

    def scaled(b: Emitter) -> list[str]:
        scale = range_scale(b, rows)
        small = b.Mul(rows, scale)
        return [b.Div(b.Sqrt(b.total(b.Mul(small, small), 1)), scale)]

    square = e.total(e.Mul(rows, rows), 1)
    return e.choose(squares_fit(e, square), lambda b: [b.Sqrt(square)], scaled, [FLOAT])[0]


def squares_fit(e: Emitter, square: str) -> str:
    """Bool scalar: whether float32 can work with rows whose squares are `square`; see `ties`."""
    longest = e.ReduceMax(square, keepdims=0)
    return str(e.And(e.Greater(longest, SHORTEST), e.Less(longest, LONGEST)))


def range_scale(e: Emitter, values: str) -> str:
    """Scalar: the power of two that takes the largest of `values` into [1, 2); 1 where there is none."""
    largest = e.Max(e.ReduceMax(values, keepdims=0), e.Neg(e.ReduceMin(values, keepdims=0)))
    exponent = e.Floor(e.Mul(e.Log(largest), 1 / math.log(2)))
    scale = e.Pow(2.0, e.Neg(e.Max(-126.0, e.Min(126.0, exponent))))
    is_number = e.And(e.Greater(largest, 0.0), e.Less(largest, math.inf))
    return str(e.Where(is_number, scale, 1.0))


def without_nan(e: Emitter, values: str) -> str:
    """`values` with NaN as the lowest number, so that orders of them are orders: a graph cannot refuse its input."""
    return str(e.Where(e.IsNaN(values), float(np.finfo(np.float32).min), values))


def squared_offsets(
    e: Emitter, own: str, other: str | None, *, grid: tuple[int, int], scale: tuple[int, int] = (1, 1)
) -> str:
    """[N, M] int64: squared distance on the grid between patches `own` [N] and `other` [M], given by raster index.

    All patches where `other` is None. In patches; `scale` multiplies the steps down and across.
    """
    tokens = np.arange(grid[0] * grid[1])
    squares = []
    for axis, factor in enumerate(scale):
        places = factor * np.unravel_index(tokens, grid)[axis]
        left = e.Unsqueeze(e.Gather(places, own), [1])
        right = e.Unsqueeze(e.Gather(places, other), [0]) if other is not None else places[None]
        step = e.Sub(left, right)
        squares.append(e.Mul(step, step))
    return str(e.Add(*squares))


def greedy(
    e: Emitter,
    count: int,
    gain: str,
    states: Sequence[str],
    step: Callable[[Emitter, str, str, Sequence[str]], tuple[str, Sequence[str]]],
    *,
    tokens: int,
) -> str:
    """The tokens [1, count] int64 that greedy selection picks, in order: `count` times the one of largest gain.

    Args:
        gain: [1, T] float32, at the start. Ties go to the lower index.
        states: Float32 values that `step` carries from round to round.
        step: step(emitter, round, picked [1] int64, states) -> the gain after this pick, and the new states. It need
            not care for tokens already picked.
    """

    def pick(b: Emitter, round_: str, before: Sequence[str]) -> tuple[Sequence[str], str]:
        gain, taken, *states = before
        picked = b.ArgMax(b.Add(gain, taken), axis=1, keepdims=0)
        taken = b.ScatterElements(taken, picked, np.array([TAKEN]), axis=0)
        gain, after = step(b, round_, picked, states)
        return [gain, taken, *after], picked

    start = [gain, e.Expand(0.0, [tokens]), *states]
    _, order = e.repeat(count, start, [FLOAT] * len(start), pick, INT64)
    return str(e.Transpose(order))


def distinct_tokens(e: Emitter, order: str, *, tokens: int, count: int) -> str:
    """`order` [1, count] int64, ascending and without repetition, whatever is in it.

    Where NaN made a selection pick a token twice, the lowest tokens that were not picked take the free places.
    """
    ones = np.ones((1, count))
    picked = e.ScatterElements(e.Expand(0.0, [1, tokens]), order, ones, axis=1)
    # Picked tokens first, then the others, each by index.
    key = e.Sub(np.arange(tokens, dtype=np.float32)[None], e.Mul(float(tokens), picked))
    _, chosen = e.TopK(key, [count], outputs=2, axis=1, largest=0)
    return in_raster_order(e, chosen, count)


def rounded_quotient(e: Emitter, numerator: str, denominator: str) -> str:
    """numerator / denominator of whole numbers in float32, rounded; an exact half goes to the even neighbour.

    On the exact quotient, by division with remainder: halves do occur.
    """
    above, below = e.as_int(numerator), e.as_int(denominator)
    quotient = e.Div(above, below)
    twice_rest = e.Mul(2, e.Sub(above, e.Mul(quotient, below)))
    is_odd = e.Equal(e.Sub(quotient, e.Mul(2, e.Div(quotient, 2))), 1)
    up = e.Or(e.Greater(twice_rest, below), e.And(e.Equal(twice_rest, below), is_odd))
    return str(e.Add(e.as_float(quotient), e.as_float(up)))
