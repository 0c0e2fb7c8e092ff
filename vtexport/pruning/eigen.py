"""Leading eigenvectors of a symmetric matrix in ONNX, from matrix products and element-wise ops alone.

ONNX has no eigen-decomposition. Plain powers of the matrix lose the trailing wanted vectors in float32, so this is a
block method: orthonormalise, solve the small projected problem (Rayleigh-Ritz), correct every vector by a Chebyshev
iteration on its own residual, and repeat until the residuals are small. All matrices are [rows, columns] float32. The
small ones cost a node's overhead rather than arithmetic, so there Gemm, which scales and adds, stands for MatMul.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import onnx_ir as ir

from vtexport.graphs.builder import Builder, scoped
from vtexport.graphs.control_flow import repeat_while

RESIDUAL = 1e-6  # stop when |G v - theta v| <= RESIDUAL * largest eigenvalue for every wanted vector
SMALLEST_ANGLE = 1e-3  # stop rotating when the largest angle just applied, in units of pi/4, is below this
FIRST_ANGLE = 0.3  # the same before the first correction, when the block is far from the answer anyway
LARGEST_TURN = 2.0  # the most that a column's angles may add up to in one round
MOST_CORRECTIONS = 12
OVERSAMPLING = 16  # columns beyond the wanted ones; they set the convergence rate
TINY = 1e-30  # floor of squared norms, so that zero matrices give zeros and not NaN


@dataclass(frozen=True)
class Eigenvectors:
    """Values: `vectors` [T, k] by descending eigenvalue, `values` [1, k], `residual` [1, 1] (relative)."""

    vectors: ir.Value
    values: ir.Value
    residual: ir.Value


@scoped("eigenvectors")
def leading_eigenvectors(g: Builder, gram: ir.Value, *, tokens: int, count: int) -> Eigenvectors:
    """The `count` leading eigenvectors of the positive semi-definite `gram` [tokens, tokens].

    Deterministic: the starting block is a constant. Signs are arbitrary. Vectors of (nearly) equal eigenvalues are any
    basis of their common space, and vectors beyond the matrix's rank are undefined but finite.
    """
    size = min(tokens, -(-(count + OVERSAMPLING) // 8) * 8)
    block = g.constant(_starting_block(tokens, size))
    for _ in range(2):
        block = g.MatMul(gram, block)
        block = g.MatMul(block, _orthonormaliser(g, block, size, smallest=1e-3))
    block, rest, values = _rayleigh_ritz(g, gram, block, size, smallest=0.05, angle=FIRST_ANGLE, most=size // 2 + 24)

    def correct(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        old, rest, values = states
        new = b.Add(old, _chebyshev_correction(b, gram, old, rest, values))
        new, rest, values = _rayleigh_ritz(b, gram, new, size, smallest=0.02, angle=SMALLEST_ANGLE, most=24)
        go_on = b.Greater(b.Squeeze(_worst_residual(b, rest, values, count)), RESIDUAL)
        return go_on, [new, rest, values]

    block, rest, values = repeat_while(g, MOST_CORRECTIONS, [block, rest, values], ["float32"] * 3, correct)
    # Shape inference cannot see through a loop.
    block, values = g.Reshape(block, [tokens, size]), g.Reshape(values, [1, size])
    top, order = g.TopK(values, [count], outputs=2, axis=1)
    vectors = g.Gather(block, g.Squeeze(order, [0]), axis=1)
    return Eigenvectors(vectors, top, _worst_residual(g, rest, values, count))


@scoped("strong")
def strong(g: Builder, values: ir.Value, weakest: float, least: float | ir.Value) -> ir.Value:
    """[1, k] bool: which of the leading eigenvalues [1, k] are those of directions; the others are rounding."""
    return g.Greater(values, g.Max(least, g.Mul(weakest, g.ReduceMax(values, keepdims=1))))


def _starting_block(tokens: int, size: int) -> np.ndarray:
    """[tokens, size] fixed numbers without structure."""
    row, column = np.arange(tokens, dtype=np.float64)[:, None], np.arange(size, dtype=np.float64)[None]
    return np.modf(np.sin(row * 12.9898 + column * 78.233) * 43758.5453)[0].astype(np.float32)


@scoped("orthonormalise")
def _orthonormaliser(g: Builder, block: ir.Value, size: int, *, smallest: float) -> ir.Value:
    """W [size, size] such that block W has orthonormal columns: the block's columns scaled to norm 1, then made so.

    `smallest`: down to which singular value, relative to the largest, one pass is to be exact.
    """
    matrix = g.Gemm(block, block, transA=1)
    square = g.Max(TINY, g.total(g.Mul(matrix, np.eye(size)), 1))
    scale = g.Reciprocal(g.Sqrt(square))
    matrix = g.Mul(g.Mul(matrix, scale), g.Transpose(scale))
    return g.Mul(_inverse_square_root(g, matrix, size, smallest), scale)


def _inverse_square_root(g: Builder, matrix: ir.Value, size: int, smallest: float) -> ir.Value:
    """matrix^(-1/2) of the symmetric positive semi-definite `matrix` [size, size] by coupled polynomial steps."""
    bound = g.Max(TINY, g.ReduceMax(g.total(g.Abs(matrix), 1), keepdims=0))  # of the largest eigenvalue
    eye = g.constant(np.eye(size))
    root, inverse = g.Div(matrix, bound), eye
    for a, b, c in _polynomials(smallest):
        # With m = inverse root, the step a + b m + c m² as c (m + b / 2c)² + the rest.
        shifted = g.Gemm(inverse, root, eye, beta=b / (2 * c))
        step = g.Gemm(shifted, shifted, eye, alpha=c, beta=a - b * b / (4 * c))
        root, inverse = g.Gemm(root, step), g.Gemm(step, inverse)
    return g.Div(inverse, g.Sqrt(bound))


@functools.cache
def _polynomials(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of the steps x (a + b x² + c x⁴) that take every x of [smallest, 1] to 1, to float32's precision.

    Every step is the one that maps the interval left by those before it to the shortest interval around 1 (the minimax
    polynomial, by Remez exchange). It takes a third of the products of the classical Newton-Schulz steps.
    """
    low, high = smallest, 1.0
    steps = []
    while high - low > 2e-7:
        if high - low < 1e-2:  # the limit of the minimax polynomials, where their equations lose precision
            steps.append((1.875, -1.25, 0.375))
            break
        points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
        for _ in range(50):
            signs = np.array([1.0, -1.0, 1.0, -1.0])
            a, b, c, error = np.linalg.solve(np.stack([points, points**3, points**5, signs], axis=1), np.ones(4))
            middle = np.sqrt(np.maximum(0.0, 9 * b * b - 20 * a * c))
            points[1:3] = np.sqrt((-3 * b - middle) / (10 * c)), np.sqrt((-3 * b + middle) / (10 * c))
        steps.append((float(a), float(b), float(c)))
        low, high = 1 - abs(error), 1 + abs(error)
    return tuple(steps)


@scoped("rayleigh_ritz")
def _rayleigh_ritz(
    g: Builder, gram: ir.Value, block: ir.Value, size: int, *, smallest: float, angle: float, most: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The best eigenvectors in span(block), their residuals orthogonal to it, their Ritz values [1, size]."""
    image = g.MatMul(gram, block)
    basis = _orthonormaliser(g, block, size, smallest=smallest)
    projected = g.Gemm(basis, g.MatMul(g.Gemm(block, image, transA=1), basis), transA=1)
    rotation = g.MatMul(basis, _diagonalise(g, projected, size, angle=angle, most=most))
    block, image = g.MatMul(block, rotation), g.MatMul(image, rotation)
    values = g.total(g.Mul(block, image), 0)
    for _ in range(2):  # once is not enough in float32
        image = _outside(g, image, block)
    return block, image, values


def _outside(g: Builder, image: ir.Value, block: ir.Value) -> ir.Value:
    """`image` without its part in span(block)."""
    return g.Gemm(block, g.Gemm(block, image, transA=1), image, alpha=-1.0)


@scoped("diagonalise")
def _diagonalise(g: Builder, matrix: ir.Value, size: int, *, angle: float, most: int) -> ir.Value:
    """Rotation that makes the symmetric `matrix` [size, size] diagonal, its columns in no special order.

    Every round rotates all pairs at once by about their Jacobi angles, damped per pair so that no row of angles sums to
    more than LARGEST_TURN, which lets noisy pairs (the null space) go their own way without slowing the others.
    """
    eye, index = np.eye(size), np.arange(size)
    # Gives equal diagonal entries a sign, and makes the angles on the diagonal 0 (to 1e-30).
    skew = np.where(index[:, None] > index[None], -TINY, np.where(eye > 0, 1 / TINY, TINY))

    def rotate(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        old = states[0]
        projected = b.Gemm(old, b.Gemm(matrix, old), transA=1)
        diagonal = b.Mul(projected, pi / 2 * eye)
        gap = b.Add(b.Sub(b.total(diagonal, 0), b.total(diagonal, 1)), skew)
        # Exactly symmetric: rounding noise would make the angles a non-rotation.
        twice = b.Add(projected, b.Transpose(projected))
        # pi/4 tanh(2/pi r) is near the Jacobi angle atan(r) / 2, and equal to it to second order and at infinity.
        turn = b.Tanh(b.Div(twice, gap))  # in units of pi/4
        amount = b.Abs(turn)
        sums = [b.Mul(1 / LARGEST_TURN, b.total(amount, axis)) for axis in (0, 1)]
        generator = b.Div(turn, b.Max(4 / pi, *sums))
        # exp(generator) - 1 to third order, which up to LARGEST_TURN stays near enough to a rotation
        # for one Newton-Schulz step to keep the product orthonormal.
        generator_twice = b.Gemm(generator, generator, generator, alpha=1 / 3)
        new = b.Gemm(old, b.Gemm(generator, generator_twice, generator, alpha=0.5), old)
        new = b.Gemm(new, b.Gemm(new, new, eye, transA=1, alpha=-0.5, beta=1.5))
        return b.Greater(b.ReduceMax(amount, keepdims=0), angle), [new]

    return repeat_while(g, most, [g.constant(eye)], ["float32"], rotate)[0]


@scoped("chebyshev")
def _chebyshev_correction(g: Builder, gram: ir.Value, block: ir.Value, rest: ir.Value, values: ir.Value) -> ir.Value:
    """Parts of the eigenvectors outside span(block), approximated: (theta - G)⁻¹ rest, column by column.

    The spectrum outside the block lies in [0, smallest Ritz value], which y = scale G - 1 maps to [-1, 1]. There the
    Chebyshev polynomial T3 is small, so 1 / (theta - G) is near scale (1 - T3(y) / T3(point)) / (point - y), a
    polynomial in y: 4 scale / T3(point) (y² + point y + point² - 3/4), with point the image of theta. Higher degrees
    need more products with G for no fewer corrections.
    """
    smallest, largest = g.ReduceMin(values, keepdims=1), g.ReduceMax(values, keepdims=1)
    scale = g.Div(2.0, g.Max(TINY, smallest, g.Mul(1e-6, largest)))
    point = g.Max(1.0, g.Sub(g.Mul(values, scale), 1.0))  # T3 has its zeros below 1
    square = g.Mul(point, point)
    free = g.Sub(square, 0.75)
    # What rounding leaves inside the block would grow with every product.
    image = g.Mul(_outside(g, g.MatMul(gram, rest), block), scale)
    inner = g.Add(image, g.Mul(g.Sub(point, 1.0), rest))  # (y + point) rest
    image = g.Mul(_outside(g, g.MatMul(gram, inner), block), scale)
    sum_ = g.Add(g.Sub(image, inner), g.Mul(free, rest))
    return g.Mul(sum_, g.Div(scale, g.Mul(point, free)))  # T3(point) = 4 point (point² - 3/4)


@scoped("residual")
def _worst_residual(g: Builder, rest: ir.Value, values: ir.Value, count: int) -> ir.Value:
    """[1, 1]: the largest residual norm among the `count` leading columns, relative to the largest value."""
    top, _ = g.TopK(values, [count], outputs=2, axis=1)
    wanted = g.as_float(g.GreaterOrEqual(values, g.ReduceMin(top, keepdims=1)))
    worst = g.ReduceMax(g.Mul(g.total(g.Mul(rest, rest), 0), wanted), keepdims=1)
    return g.Div(g.Sqrt(worst), g.Max(TINY, g.ReduceMax(values, keepdims=1)))
