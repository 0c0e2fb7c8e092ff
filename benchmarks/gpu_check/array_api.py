"""A stand-in for the array API as the references need it, where the package array-api-compat is not installed.

The references are written against that package. `install` puts this in its place where it is missing, with just the
functions that `vtexport.pruning` calls, for NumPy (1.24 on) and PyTorch. tests/benchmarks holds it to the package.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np


def install() -> bool:
    """Puts the stand-in in place where the package is missing; True where it is."""
    try:
        importlib.import_module("array_api_compat")
        return False
    except ImportError:
        pass
    module: Any = types.ModuleType("array_api_compat")
    module.array_namespace, module.device = array_namespace, device
    sys.modules["array_api_compat"] = module
    return True


def array_namespace(*arrays: Any) -> Any:
    """NumPy's or PyTorch's namespace.

    Raises:
        TypeError: The arrays are of neither kind, or of both.
    """
    kinds = {type(array).__module__.split(".")[0] for array in arrays}
    if kinds == {"numpy"}:
        return NumPy
    if kinds == {"torch"}:
        return torch_namespace()
    raise TypeError(f"no one namespace for arrays of {', '.join(sorted(kinds))}")


def device(array: Any) -> Any:
    return "cpu" if isinstance(array, np.ndarray | np.generic) else array.device


def _kinds(kind: str | tuple[str, ...]) -> tuple[str, ...]:
    return (kind,) if isinstance(kind, str) else kind


def _without_device(function: Any) -> Any:
    def call(*arguments: Any, device: Any = None, **named: Any) -> Any:
        return function(*arguments, **named)

    return staticmethod(call)


class NumPy:
    """Names of the array API that old versions of NumPy lack or spell otherwise; the others are its own."""

    bool, int64, float32, float64, inf = np.bool_, np.int64, np.float32, np.float64, np.inf
    where, stack, reshape, sort, isfinite, sqrt, exp = (
        np.where,
        np.stack,
        np.reshape,
        np.sort,
        np.isfinite,
        np.sqrt,
        np.exp,
    )
    ones_like, full_like, zeros_like, abs, tanh = np.ones_like, np.full_like, np.zeros_like, np.abs, np.tanh
    round = staticmethod(np.round)
    sum, min, mean, max, all, any = np.sum, np.min, np.mean, np.max, np.all, np.any
    take, flip, argmax, argmin, minimum = np.take, np.flip, np.argmax, np.argmin, np.minimum
    permute_dims, concat = staticmethod(np.transpose), staticmethod(np.concatenate)
    asarray, zeros, full = _without_device(np.asarray), _without_device(np.zeros), _without_device(np.full)
    arange, eye = _without_device(np.arange), _without_device(np.eye)

    class linalg:  # noqa: N801
        diagonal = staticmethod(np.diagonal)
        eigh = staticmethod(np.linalg.eigh)

    @staticmethod
    def astype(array: Any, dtype: Any) -> Any:
        return array.astype(dtype)

    @staticmethod
    def argsort(array: Any, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
        """Stable either way: ties to the lower index."""
        if not descending:
            return np.argsort(array, axis=axis, kind="stable")
        turned = np.flip(np.argsort(np.flip(array, axis), axis=axis, kind="stable"), axis)
        return array.shape[axis] - 1 - turned

    @staticmethod
    def cumulative_sum(array: Any) -> Any:
        return np.cumsum(array)

    @staticmethod
    def clip(array: Any, *, min: float) -> Any:  # noqa: A002
        return np.maximum(array, min)

    @staticmethod
    def isdtype(dtype: Any, kind: str | tuple[str, ...]) -> Any:
        letters = {"bool": "b", "integral": "iu", "complex floating": "c", "real floating": "f"}
        return np.dtype(dtype).kind in "".join(letters[each] for each in _kinds(kind))


def torch_namespace() -> Any:
    """PyTorch's functions under the names and with the arguments of the array API."""
    import torch

    def reduction(whole: Any, along: Any) -> Any:
        def reduce(array: Any, *, axis: int | None = None, keepdims: bool = False) -> Any:
            return whole(array) if axis is None else along(array, dim=axis, keepdim=keepdims)

        return staticmethod(reduce)

    class Torch:
        bool, int64, float32, float64, inf = torch.bool, torch.int64, torch.float32, torch.float64, float("inf")
        reshape, isfinite, sqrt, exp, abs, tanh = (
            *(torch.reshape, torch.isfinite, torch.sqrt, torch.exp),
            *(torch.abs, torch.tanh),
        )
        ones_like, full_like, zeros_like, minimum = torch.ones_like, torch.full_like, torch.zeros_like, torch.minimum
        where, asarray, zeros, full, arange, eye = (
            *(torch.where, torch.asarray, torch.zeros),
            *(torch.full, torch.arange, torch.eye),
        )
        permute_dims, round = torch.permute, torch.round
        sum, mean = reduction(torch.sum, torch.sum), reduction(torch.mean, torch.mean)
        min, max = reduction(torch.min, torch.amin), reduction(torch.max, torch.amax)
        all, any = reduction(torch.all, torch.all), reduction(torch.any, torch.any)
        argmax, argmin = reduction(torch.argmax, torch.argmax), reduction(torch.argmin, torch.argmin)

        class linalg:  # noqa: N801
            diagonal = staticmethod(torch.diagonal)
            eigh = staticmethod(torch.linalg.eigh)

        @staticmethod
        def stack(arrays: Any, axis: int = 0) -> Any:
            return torch.stack(list(arrays), dim=axis)

        @staticmethod
        def concat(arrays: Any, axis: int = 0) -> Any:
            return torch.cat(list(arrays), dim=axis)

        @staticmethod
        def astype(array: Any, dtype: Any) -> Any:
            return array.to(dtype)

        @staticmethod
        def take(array: Any, indices: Any, *, axis: int = 0) -> Any:
            return torch.index_select(array, axis, indices)

        @staticmethod
        def flip(array: Any, *, axis: int = 0) -> Any:
            return torch.flip(array, (axis,))

        @staticmethod
        def sort(array: Any, *, axis: int = -1) -> Any:
            return torch.sort(array, dim=axis, stable=True).values

        @staticmethod
        def argsort(array: Any, *, axis: int = -1, descending: Any = False, stable: Any = True) -> Any:
            return torch.argsort(array, dim=axis, descending=descending, stable=stable)

        @staticmethod
        def cumulative_sum(array: Any) -> Any:
            return torch.cumsum(array, dim=0)

        @staticmethod
        def clip(array: Any, *, min: float) -> Any:  # noqa: A002
            return torch.clamp(array, min=min)

        @staticmethod
        def isdtype(dtype: Any, kind: str | tuple[str, ...]) -> Any:
            is_kind = {
                "bool": dtype == torch.bool,
                "complex floating": dtype.is_complex,
                "real floating": dtype.is_floating_point,
                "integral": not (dtype == torch.bool or dtype.is_complex or dtype.is_floating_point),
            }
            return any(is_kind[each] for each in _kinds(kind))

    return Torch
