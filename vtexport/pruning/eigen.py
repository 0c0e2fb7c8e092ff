"""Leading eigenvectors of symmetric matrices in ONNX, from MatMul and element-wise ops alone.

ONNX has no eigen-decomposition. Plain powers of the matrix lose the trailing wanted vectors in float32, so this is a
block method: orthonormalise, solve the small projected problem (Rayleigh-Ritz), correct every vector by a Chebyshev
iteration on its own residual, and repeat until the residuals are small. All matrices are [B, rows, columns] float32.
Every image stops on its own account, so that it gets the same vectors whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtexport.pruning.emit import BOOL, FLOAT, Emitter

RESIDUAL = 1e-6  # stop when |G v - theta v| <= RESIDUAL * largest eigenvalue for every wanted vector
SMALLEST_ANGLE = 1e-3  # stop rotating when the tangent of the largest angle just applied is below this
MOST_CORRECTIONS = 12
CHEBYSHEV_DEGREE = 4
OVERSAMPLING = 16  # columns beyond the wanted ones; they set the convergence rate
TINY = 1e-30  # floor of squared norms, so that zero matrices give zeros and not NaN


@dataclass(frozen=True)
class Eigenvectors:
    """Names of `vectors` [B, T, k] by descending eigenvalue, `values` [B, 1, k], `residual` [B, 1, 1] (relative)."""

    vectors: str
    values: str
    residual: str


def leading_eigenvectors(e: Emitter, gram: str, *, tokens: int, count: int) -> Eigenvectors:
    """The `count` leading eigenvectors of the positive semi-definite `gram` [B, tokens, tokens].

    Deterministic: the starting block is a constant. Signs are arbitrary. Vectors of (nearly) equal eigenvalues are any
    basis of their common space, and vectors beyond the matrix's rank are undefined but finite.
    """
    size = min(tokens, -(-(count + OVERSAMPLING) // 8) * 8)
    block = e.constant(_starting_block(tokens, size))
    for _ in range(2):
        block = _orthonormalise(e, e.MatMul(gram, block), size, rounds=16)
    block = _orthonormalise(e, block, size, rounds=6)
    block, rest, values = _rayleigh_ritz(e, gram, block, size, most=size // 2 + 24)
    active = e.GreaterOrEqual(e.ReduceMax(values, [2], keepdims=1), -1.0)

    def correct(b: Emitter, states: Sequence[str]) -> tuple[str, list[str]]:
        old, old_rest, old_values, active = states
        new = b.Add(old, _chebyshev_correction(b, gram, old, old_rest, old_values))
        new = _orthonormalise(b, new, size, rounds=10)
        new, new_rest, new_values = _rayleigh_ritz(b, gram, new, size, most=24)
        new, new_rest = b.Where(active, new, old), b.Where(active, new_rest, old_rest)
        new_values = b.Where(active, new_values, old_values)
        active = b.And(active, b.Greater(_worst_residual(b, new_rest, new_values, count), RESIDUAL))
        return b.any_true(active, 3), [new, new_rest, new_values, active]

    states = [block, rest, values, active]
    block, rest, values, _ = e.repeat_while(MOST_CORRECTIONS, states, [FLOAT, FLOAT, FLOAT, BOOL], correct)
    top, order = e.TopK(values, [count], outputs=2, axis=2)
    shape = e.Shape(e.Slice(block, [0], [count], [2]))
    vectors = e.GatherElements(block, e.Expand(order, shape), axis=2)
    return Eigenvectors(vectors, top, _worst_residual(e, rest, values, count))


def _starting_block(tokens: int, size: int) -> np.ndarray:
    """[tokens, size] fixed numbers without structure."""
    row, column = np.arange(tokens, dtype=np.float64)[:, None], np.arange(size, dtype=np.float64)[None]
    return np.modf(np.sin(row * 12.9898 + column * 78.233) * 43758.5453)[0].astype(np.float32)


def _orthonormalise(e: Emitter, block: str, size: int, *, rounds: int) -> str:
    """block (blockᵀ block)^(-1/2) after scaling its columns to norm 1."""
    block = e.Div(block, e.Sqrt(e.Max(TINY, e.total(e.Mul(block, block), 1))))
    return str(e.MatMul(block, _inverse_square_root(e, e.MatMul(e.transpose(block), block), size, rounds)))


def _inverse_square_root(e: Emitter, matrix: str, size: int, rounds: int) -> str:
    """matrix^(-1/2) by the coupled Newton-Schulz iteration; `matrix` [B, size, size] is symmetric positive definite."""
    bound = e.Max(TINY, e.ReduceMax(e.total(e.Abs(matrix), 2), [1], keepdims=1))  # of the largest eigenvalue
    root = e.Div(matrix, bound)
    step = e.Sub(1.5 * np.eye(size), e.Mul(0.5, root))
    root, inverse = e.MatMul(root, step), step
    for _ in range(rounds - 1):
        step = e.Sub(1.5 * np.eye(size), e.Mul(0.5, e.MatMul(inverse, root)))
        root, inverse = e.MatMul(root, step), e.MatMul(step, inverse)
    return str(e.Div(inverse, e.Sqrt(bound)))


def _rayleigh_ritz(e: Emitter, gram: str, block: str, size: int, *, most: int) -> tuple[str, str, str]:
    """The best eigenvectors in span(block), their residuals orthogonal to it, their Ritz values [B, 1, size]."""
    image = e.MatMul(gram, block)
    rotation = _diagonalise(e, e.MatMul(e.transpose(block), image), size, most=most)
    block, image = e.MatMul(block, rotation), e.MatMul(image, rotation)
    values = e.total(e.Mul(block, image), 1)
    rows = e.transpose(block)
    for _ in range(2):  # once is not enough in float32
        image = e.Sub(image, e.MatMul(block, e.MatMul(rows, image)))
    return block, image, values


def _diagonalise(e: Emitter, matrix: str, size: int, *, most: int) -> str:
    """Rotation that makes the symmetric `matrix` [B, size, size] diagonal, its columns in no special order.

    Every round rotates all pairs at once by their Jacobi angles, damped per pair so that no row of angles sums to
    more than 1, which lets noisy pairs (the null space) go their own way without slowing the others.
    """
    eye, off_diagonal = np.eye(size), 1.0 - np.eye(size)
    index = np.arange(size)
    # Gives equal diagonal entries a sign, and keeps 0/0 away from the diagonal.
    skew = TINY * np.where(index[:, None] > index[None], -1.0, 1.0)
    start = e.Add(e.Mul(0.0, matrix), eye)
    active = e.GreaterOrEqual(e.ReduceMax(e.Abs(start), [1, 2], keepdims=1), 0.0)

    def rotate(b: Emitter, states: Sequence[str]) -> tuple[str, list[str]]:
        old, active = states
        projected = b.MatMul(b.transpose(old), b.MatMul(matrix, old))
        diagonal = b.total(b.Mul(projected, eye), 2)
        gap = b.Add(b.Sub(b.transpose(diagonal), diagonal), skew)
        # Twice the off-diagonal, exactly symmetric: rounding noise would make the angles a non-rotation.
        twice = b.Mul(b.Add(projected, b.transpose(projected)), off_diagonal)
        hypotenuse = b.Sqrt(b.Add(b.Mul(gap, gap), b.Mul(twice, twice)))
        tangent = b.Div(twice, b.Add(gap, b.Mul(b.Sign(gap), hypotenuse)))
        angle = b.Abs(tangent)
        row_sum = b.total(angle, 2)
        generator = b.Div(tangent, b.Max(1.0, row_sum, b.transpose(row_sum)))
        turn = b.Add(generator, b.Mul(0.5, b.MatMul(generator, generator)))  # exp(generator) - 1 to second order
        new = b.Add(old, b.MatMul(old, turn))
        # One Newton-Schulz step keeps the rotation orthonormal.
        new = b.MatMul(new, b.Sub(1.5 * eye, b.Mul(0.5, b.MatMul(b.transpose(new), new))))
        new = b.Where(active, new, old)
        active = b.And(active, b.Greater(b.ReduceMax(angle, [1, 2], keepdims=1), SMALLEST_ANGLE))
        return b.any_true(active, 3), [new, active]

    return e.repeat_while(most, [start, active], [FLOAT, BOOL], rotate)[0]


def _chebyshev_correction(e: Emitter, gram: str, block: str, rest: str, values: str) -> str:
    """What the eigenvectors have outside span(block), approximated: (theta - G)⁻¹ rest, column by column.

    The spectrum outside the block lies in [0, smallest Ritz value], on which the Chebyshev polynomials are small; each
    column is expanded around its own point, its Ritz value mapped to that interval.
    """
    smallest, largest = e.ReduceMin(values, [2], keepdims=1), e.ReduceMax(values, [2], keepdims=1)
    scale = e.Div(2.0, e.Max(TINY, smallest, e.Mul(1e-6, largest)))
    point = e.Max(1.0, e.Sub(e.Mul(values, scale), 1.0))  # below 1 the recurrence would divide by zero
    ratio, target, rows = e.Reciprocal(point), e.Mul(rest, scale), e.transpose(block)
    previous, current = None, e.Mul(ratio, target)
    for _ in range(CHEBYSHEV_DEGREE - 1):
        next_ratio = e.Reciprocal(e.Sub(e.Mul(2.0, point), ratio))
        image = e.MatMul(gram, current)
        image = e.Mul(e.Sub(image, e.MatMul(block, e.MatMul(rows, image))), scale)
        new = e.Mul(e.Mul(2.0, next_ratio), e.Sub(e.Add(target, image), current))
        if previous is not None:
            new = e.Sub(new, e.Mul(e.Mul(next_ratio, ratio), previous))
        previous, current, ratio = current, new, next_ratio
    return str(current)


def _worst_residual(e: Emitter, rest: str, values: str, count: int) -> str:
    """[B, 1, 1]: the largest residual norm among the `count` leading columns, relative to the largest value."""
    top, _ = e.TopK(values, [count], outputs=2, axis=2)
    wanted = e.as_float(e.GreaterOrEqual(values, e.ReduceMin(top, [2], keepdims=1)))
    worst = e.ReduceMax(e.Mul(e.total(e.Mul(rest, rest), 1), wanted), [2], keepdims=1)
    return str(e.Div(e.Sqrt(worst), e.Max(TINY, e.ReduceMax(values, [2], keepdims=1))))
