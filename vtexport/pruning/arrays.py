"""Pieces of the references, written against the array API: NumPy arrays and PyTorch tensors, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from array_api_compat import array_namespace, device

from vtexport.errors import InputError
from vtexport.pruning.signals import SIGNALS
from vtexport.pruning.ties import LONGEST, PARALLEL, ROUNDING, SHORTEST, STEP
from vtexport.pruning.types import AXES, Array


def checked_inputs(features: Array, signals: Mapping[str, Array]) -> Any:
    """The array namespace of `features` [B, rows, D] and of the signals by tensor name.

    Raises:
        InputError: One is no non-empty array of finite real numbers of the right rank, or they are not of one kind.
    """
    arrays = {"features": (features, "[batch, tokens, width]")}
    for signal in SIGNALS.values():
        if signal.input in signals:
            axes = "[" + ", ".join(AXES[axis] for axis in signal.axes) + "]"
            arrays.setdefault(signal.input, (signals[signal.input], axes))
    try:
        xp = array_namespace(*(array for array, _ in arrays.values()))
    except TypeError as error:
        kinds = " and ".join(dict.fromkeys(type(array).__name__ for array, _ in arrays.values()))
        raise InputError(
            f"{' and '.join(arrays)} have to be NumPy arrays or PyTorch tensors, all of one kind, not {kinds}"
        ) from error
    for name, (array, layout) in arrays.items():
        if array.ndim != layout.count(",") + 1 or 0 in array.shape:
            raise InputError(f"{name} has shape {tuple(array.shape)}; give a non-empty {layout} array")
        if xp.isdtype(array.dtype, ("bool", "integral", "complex floating")):
            raise InputError(f"{name} has type {array.dtype}; give real floating-point numbers")
        if not bool(xp.all(xp.isfinite(array))):
            raise InputError(f"{name} holds NaN or infinite values; check the layer that they come from")
    return xp


def integers(xp: Any, values: Sequence[Any], like: Array) -> Array:
    """int64 array of nested lists, on the device of `like`."""
    return xp.asarray(values, dtype=xp.int64, device=device(like))


def descending_order(xp: Any, values: Array, count: int | None = None) -> Array:
    """Indices of the `count` largest of `values` [..., T], largest first, ties to the lower index: a stable top-k."""
    order = xp.argsort(values, axis=-1, descending=True, stable=True)
    return order if count is None else order[..., :count]


def gather_rows(xp: Any, matrix: Array, rows: Array) -> Array:
    """[B, N, D]: row `rows[b, n]` of `matrix[b]` for every b and n, bits unchanged."""
    return xp.stack([xp.take(matrix[image], rows[image], axis=0) for image in range(matrix.shape[0])])


def settled(xp: Any, values: Array, step: float = ROUNDING) -> Array:
    """`values` rounded to multiples of `step`: what is equal but for the order of summation becomes a true tie."""
    return xp.round(values / step) * step


def settled_cosines(xp: Any, cosine: Array) -> Array:
    """Cosines as every form tells them apart: rounded to multiples of STEP, those of parallel rows 1."""
    return settled(xp, xp.where(cosine > PARALLEL, xp.ones_like(cosine), cosine), STEP)


def in_range(xp: Any, rows: Array) -> Array:
    """`rows` [T, D], by a power of two within reach of float32's squares where the longest row is beyond them.

    That row then has its largest number in [1, 2). Rows shorter than 1e-15 of that count as zero, as anywhere.
    """
    square = float(xp.max(xp.sum(rows * rows, axis=1)))
    if SHORTEST < square < LONGEST:
        return rows
    largest = float(xp.max(xp.abs(rows)))
    return rows * 2.0 ** -math.floor(math.log2(largest)) if largest > 0 else rows


def strong(xp: Any, eigenvalues: Array, weakest: float, least: float) -> Array:
    """Bool: which of the `eigenvalues` [T], descending, are those of directions; the others are rounding."""
    return eigenvalues > max(weakest * float(eigenvalues[0]), least)


def sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def leading_eigenvectors(xp: Any, gram: Array, count: int) -> tuple[Array, Array]:
    """Exact eigenvectors of symmetric `gram` [T, T]: [T, count] by descending eigenvalue, and all eigenvalues [T]."""
    values, vectors = xp.linalg.eigh(gram)
    return xp.flip(vectors, axis=1)[:, :count], xp.flip(values)


def cosine_similarity(xp: Any, rows: Array) -> Array:
    """[T, T] cosines between `rows` [T, D]; a zero row is at cosine 0 to everything, itself included."""
    unit = unit_rows(xp, rows)
    return unit @ unit.T


def squared_offsets(xp: Any, own: Array, other: Array, columns: int, scale: tuple[int, int] = (1, 1)) -> Array:
    """[N, M] int64: squared distance on the grid between patches `own` [N] and `other` [M], given by raster index.

    In patches; `scale` multiplies the steps down and across.
    """
    down = own[:, None] // columns - other[None, :] // columns
    across = own[:, None] % columns - other[None, :] % columns
    return (down * scale[0]) ** 2 + (across * scale[1]) ** 2


def unit_rows(xp: Any, rows: Array) -> Array:
    """`rows` [T, D] scaled to norm 1; a zero row stays zero."""
    norm = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    return rows / xp.where(norm < 1e-15, xp.ones_like(norm) * 1e-15, norm)


def greedy(xp: Any, count: int, gain: Array, step: Callable[[int, int], Array]) -> tuple[list[int], list[float]]:
    """Greedy selection: `count` times the token of largest gain among those left, ties to the lower index.

    Args:
        gain: [T] float64, at the start.
        step: step(round, picked token) -> the gain [T] after this pick. It need not care for tokens already picked.

    Returns:
        The tokens in the order of picking, and by how much each gain exceeded the next best (infinite for the last).
    """
    order: list[int] = []
    margins: list[float] = []
    is_taken = xp.zeros(gain.shape[0], dtype=xp.bool, device=device(gain))
    places = xp.arange(gain.shape[0], device=device(gain))
    for round_ in range(count):
        left = xp.where(is_taken, -math.inf, gain)
        best = int(xp.argmax(left))
        is_best = places == best
        margins.append(float(left[best] - xp.max(xp.where(is_best, -math.inf, left))))
        order.append(best)
        is_taken = is_taken | is_best
        gain = step(round_, best)
    return order, margins


def round_half_even(numerator: int, denominator: int) -> int:
    """numerator / denominator rounded; an exact half goes to the even neighbour. Exact, since halves do occur."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))
