"""Pieces that several methods' ONNX functions are made of, in the opset-20 operators every runtime has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import Builder, scoped
from vtexport.graphs.control_flow import choose, repeat
from vtexport.pruning.eigen import TINY
from vtexport.pruning.ties import LONGEST, SHORTEST

TAKEN = -1e30  # added to the gain of a token that has been picked, so that no value can pick it again


def per_image(
    g: Builder, batch: int, inputs: Sequence[ir.Value], image: Callable[..., dict[str, ir.Value]]
) -> dict[str, ir.Value]:
    """`image(*inputs)` for every image of the batch, each input cut to [1, ...]; results joined along the first axis.

    One image after the other: the loops of each run as long as it needs, and no image depends on another.
    """
    if batch == 1:
        return image(*inputs)
    results = []
    for index in range(batch):
        with g.scope(f"image.{index}"):
            results.append(image(*(g.Slice(each, [index], [index + 1], [0]) for each in inputs)))
    return {name: g.Concat(*(result[name] for result in results), axis=0) for name in results[0]}


@scoped("patch_rows")
def patch_rows(g: Builder, features: ir.Value, tokens: int, *, cls_rows: int) -> ir.Value:
    """[T, D] float32 patch rows of one image's `features` [1, c + T, D]."""
    rows = g.Squeeze(features, [0])
    return g.as_float(g.Slice(rows, [cls_rows], [cls_rows + tokens], [0]) if cls_rows else rows)


@scoped("gather_rows")
def gather_rows(g: Builder, features: ir.Value, rows: ir.Value) -> ir.Value:
    """[B, N, D]: the rows `rows` [B, N] int64 of `features` [B, R, D], bits unchanged."""
    return g.GatherND(features, g.Unsqueeze(rows, [2]), batch_dims=1)


@scoped("in_raster_order")
def in_raster_order(g: Builder, chosen: ir.Value, count: int) -> ir.Value:
    """`chosen` [1, count] int64, ascending."""
    return g.TopK(chosen, [count], outputs=2, axis=1, largest=0)[0]


@scoped("gram")
def gram(g: Builder, y: ir.Value, tokens: int) -> ir.Value:
    """y yᵀ [T, T] of y [T, D]. It is symmetric: of its four quarters three are computed."""
    half = tokens // 2
    if not half:
        return g.Gemm(y, y, transB=1)
    upper, lower = g.Split(y, [half, tokens - half], outputs=2, axis=0)
    corner = g.Gemm(upper, lower, transB=1)
    first = g.Concat(g.Gemm(upper, upper, transB=1), corner, axis=1)
    second = g.Concat(g.Transpose(corner), g.Gemm(lower, lower, transB=1), axis=1)
    return g.Concat(first, second, axis=0)


@scoped("cosine_rows")
def cosine_rows(g: Builder, rows: ir.Value) -> ir.Value:
    """`rows` [T, D] scaled to norm 1; a zero row stays zero."""

    def units(b: Builder, rows: ir.Value, square: ir.Value) -> ir.Value:
        return b.Mul(rows, b.Reciprocal(b.Sqrt(b.Max(TINY, square))))

    def scaled(b: Builder) -> list[ir.Value]:
        small = b.Mul(rows, range_scale(b, rows))
        return [units(b, small, b.total(b.Mul(small, small), 1))]

    square = g.total(g.Mul(rows, rows), 1)
    return choose(g, squares_fit(g, square), lambda b: [units(b, rows, square)], scaled, ["float32"])[0]


@scoped("row_norms")
def row_norms(g: Builder, rows: ir.Value) -> ir.Value:
    """[T, 1]: the norms of `rows` [T, D]."""

    def scaled(b: Builder) -> list[ir.Value]:
        scale = range_scale(b, rows)
        small = b.Mul(rows, scale)
        return [b.Div(b.Sqrt(b.total(b.Mul(small, small), 1)), scale)]

    square = g.total(g.Mul(rows, rows), 1)
    return choose(g, squares_fit(g, square), lambda b: [b.Sqrt(square)], scaled, ["float32"])[0]


@scoped("squares_fit")
def squares_fit(g: Builder, square: ir.Value) -> ir.Value:
    """Bool scalar: whether float32 can work with rows whose squares are `square`; see `ties`."""
    longest = g.ReduceMax(square, keepdims=0)
    return g.And(g.Greater(longest, SHORTEST), g.Less(longest, LONGEST))


@scoped("range_scale")
def range_scale(g: Builder, values: ir.Value) -> ir.Value:
    """Scalar: the power of two that takes the largest of `values` into [1, 2); 1 where there is none."""
    largest = g.Max(g.ReduceMax(values, keepdims=0), g.Neg(g.ReduceMin(values, keepdims=0)))
    exponent = g.Floor(g.Mul(g.Log(largest), 1 / math.log(2)))
    scale = g.Pow(2.0, g.Neg(g.Max(-126.0, g.Min(126.0, exponent))))
    is_number = g.And(g.Greater(largest, 0.0), g.Less(largest, math.inf))
    return g.Where(is_number, scale, 1.0)


@scoped("without_nan")
def without_nan(g: Builder, values: ir.Value) -> ir.Value:
    """`values` with NaN as the lowest number, so that orders of them are orders: a graph cannot refuse its input."""
    return g.Where(g.IsNaN(values), float(np.finfo(np.float32).min), values)


@scoped("squared_offsets")
def squared_offsets(
    g: Builder, own: ir.Value, other: ir.Value | None, *, grid: tuple[int, int], scale: tuple[int, int] = (1, 1)
) -> ir.Value:
    """[N, M] int64: squared distance on the grid between patches `own` [N] and `other` [M], given by raster index.

    All patches where `other` is None. In patches; `scale` multiplies the steps down and across.
    """
    tokens = np.arange(grid[0] * grid[1])
    squares = []
    for axis, factor in enumerate(scale):
        places = factor * np.unravel_index(tokens, grid)[axis]
        left = g.Unsqueeze(g.Gather(places, own), [1])
        right = g.Unsqueeze(g.Gather(places, other), [0]) if other is not None else places[None]
        step = g.Sub(left, right)
        squares.append(g.Mul(step, step))
    return g.Add(*squares)


@scoped("greedy")
def greedy(
    g: Builder,
    count: int,
    gain: ir.Value,
    states: Sequence[ir.Value],
    step: Callable[[Builder, ir.Value, ir.Value, Sequence[ir.Value]], tuple[ir.Value, Sequence[ir.Value]]],
    *,
    tokens: int,
) -> ir.Value:
    """The tokens [1, count] int64 that greedy selection picks, in order: `count` times the one of largest gain.

    Args:
        gain: [1, T] float32, at the start. Ties go to the lower index.
        states: Float32 values that `step` carries from round to round.
        step: step(builder, round, picked [1] int64, states) -> the gain after this pick, and the new states. It need
            not care for tokens already picked.
    """

    def pick(b: Builder, round_: ir.Value, before: Sequence[ir.Value]) -> tuple[Sequence[ir.Value], ir.Value]:
        gain, taken, *states = before
        picked = b.ArgMax(b.Add(gain, taken), axis=1, keepdims=0)
        taken = b.ScatterElements(taken, picked, np.array([TAKEN]), axis=0)
        gain, after = step(b, round_, picked, states)
        return [gain, taken, *after], picked

    start = [gain, g.Expand(0.0, [tokens]), *states]
    _, order = repeat(g, count, start, ["float32"] * len(start), pick, "int64")
    return g.Transpose(order)


@scoped("distinct_tokens")
def distinct_tokens(g: Builder, order: ir.Value, *, tokens: int, count: int) -> ir.Value:
    """`order` [1, count] int64, ascending and without repetition, whatever is in it.

    Where NaN made a selection pick a token twice, the lowest tokens that were not picked take the free places.
    """
    ones = np.ones((1, count))
    picked = g.ScatterElements(g.Expand(0.0, [1, tokens]), order, ones, axis=1)
    # Picked tokens first, then the others, each by index.
    key = g.Sub(np.arange(tokens, dtype=np.float32)[None], g.Mul(float(tokens), picked))
    _, chosen = g.TopK(key, [count], outputs=2, axis=1, largest=0)
    return in_raster_order(g, chosen, count)


@scoped("rounded_quotient")
def rounded_quotient(g: Builder, numerator: ir.Value, denominator: ir.Value) -> ir.Value:
    """numerator / denominator of whole numbers in float32, rounded; an exact half goes to the even neighbour.

    On the exact quotient, by division with remainder: halves do occur.
    """
    above, below = g.as_int(numerator), g.as_int(denominator)
    quotient = g.Div(above, below)
    twice_rest = g.Mul(2, g.Sub(above, g.Mul(quotient, below)))
    is_odd = g.Equal(g.Sub(quotient, g.Mul(2, g.Div(quotient, 2))), 1)
    up = g.Or(g.Greater(twice_rest, below), g.And(g.Equal(twice_rest, below), is_odd))
    return g.Add(g.as_float(quotient), g.as_float(up))
