"""Pieces of the references, written against the array API: NumPy arrays and PyTorch tensors, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace, device

from vtexport.errors import InputError
from vtexport.pruning.method import Array


def checked_inputs(features: Array, scores: Array | None) -> tuple[Any, int, int, int]:
    """The array namespace of the inputs and the features' batch, rows and width.

    Raises:
        InputError: `features` is no [B, rows, D] array of finite real numbers, or `scores` no finite [B, *] of the same
            kind.
    """
    arrays = [features] if scores is None else [features, scores]
    try:
        xp = array_namespace(*arrays)
    except TypeError as error:
        raise InputError(
            f"features and scores have to be NumPy arrays or PyTorch tensors, both of one kind, not "
            f"{' and '.join(type(array).__name__ for array in arrays)}"
        ) from error
    for name, array, rank in [("features", features, 3), ("scores", scores, 2)][: len(arrays)]:
        if array.ndim != rank or 0 in array.shape:
            layout = "[batch, tokens, width]" if rank == 3 else "[batch, tokens]"
            raise InputError(f"{name} has shape {tuple(array.shape)}; give a non-empty {layout} array")
        if xp.isdtype(array.dtype, ("bool", "integral", "complex floating")):
            raise InputError(f"{name} has type {array.dtype}; give real floating-point numbers")
        if not bool(xp.all(xp.isfinite(array))):
            raise InputError(f"{name} holds NaN or infinite values; check the layer that they come from")
    return xp, int(features.shape[0]), int(features.shape[1]), int(features.shape[2])


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


def sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def leading_eigenvectors(xp: Any, gram: Array, count: int) -> tuple[Array, Array]:
    """Exact eigenvectors of symmetric `gram` [T, T]: [T, count] by descending eigenvalue, and all eigenvalues [T]."""
    values, vectors = xp.linalg.eigh(gram)
    return xp.flip(vectors, axis=1)[:, :count], xp.flip(values)


def cosine_similarity(xp: Any, rows: Array) -> Array:
    """[T, T] cosines between `rows` [T, D]; a zero row is at cosine 0 to everything, itself included."""
    norm = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
    unit = rows / xp.where(norm < 1e-15, xp.ones_like(norm) * 1e-15, norm)
    return unit @ unit.T
