"""Rounding noise of a PyTorch model, made visible: the yardstick of a proof's bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from vtexport.dtypes import DTYPES


@contextlib.contextmanager
def rounded(
    model: torch.nn.Module, precision: str, seed: int, without: torch.nn.Module | None = None
) -> Iterator[None]:
    """While the block runs, every layer's output is changed by a random share of up to the precision's `epsilon`.

    That is twice the largest relative error of one rounding: another order of summation is several roundings.
    Embedding tables are left out, because reading a row rounds nothing, and the layers inside `without`.
    """
    generator = torch.Generator().manual_seed(seed)
    epsilon = DTYPES[precision].epsilon

    def disturb(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        share = torch.empty(output.shape).uniform_(-epsilon, epsilon, generator=generator)
        return output * (1 + share.to(output.device, output.dtype))

    left_out = set() if without is None else set(without.modules())
    handles = [
        module.register_forward_hook(disturb)
        for module in model.modules()
        if not list(module.children()) and not isinstance(module, torch.nn.Embedding) and module not in left_out
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
