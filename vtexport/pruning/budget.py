"""Budgets: whether a method can give `--keep N`, and N as the mean over the language model's layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from vtexport.errors import UsageError

TOLERANCE = 0.02  # how far the mean over layers may be from N


def check_keep(method: str, keep: int | None, *, largest: int, unit: str, smallest: int = 1) -> int:
    """`keep` when it is a whole number from `smallest` to `largest`, which are in `unit`.

    Raises:
        UsageError: It is not.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or not smallest <= keep <= largest:
        raise UsageError(
            f"keep={keep!r} is not allowed for {method} on this image size; "
            f"give a whole number from {smallest} to {largest} ({unit})"
        )
    return keep


def scaled_layer(layer: int, layers: int, of: int = 32) -> int:
    """A pruning layer that was chosen for a decoder of `of` layers, in one of `layers`; at least 1."""
    return min(layers - 1, max(1, round(layer * layers / of)))


def mean_tokens(first: int, steps: Sequence[tuple[int, int]], layers: int) -> float:
    """Visual tokens in a layer on average: `first` up to the first step's layer, then what each (layer, keep) left."""
    edges = [0, *(layer for layer, _ in steps), layers]
    counts = [first, *(keep for _, keep in steps)]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    return sum(count * length for count, length in zip(counts, lengths, strict=True)) / layers


def check_layers(method: str, layers: Sequence[int], of: int) -> None:
    """Refuses steps that do not follow each other inside a decoder of `of` layers.

    Raises:
        UsageError: With the layers and what is possible.
    """
    if not all(0 < a < of for a in layers) or any(a >= b for a, b in itertools.pairwise(layers)):
        raise UsageError(
            f"{method} would prune before the layers {', '.join(map(str, layers))} of a decoder of {of}; "
            f"they have to rise from 1 to {of - 1}"
        )


def check_budget(method: str, keep: int | None, mean_of: Callable[[int], float | None], tokens: int) -> int:
    """`keep`, where the method's counts for it come to a mean within 2 % of it.

    Args:
        method: Its name.
        keep: The budget asked for.
        mean_of: The mean over the layers that the method's counts for a budget come to, None where it has no counts.
        tokens: Visual tokens without pruning.

    Raises:
        UsageError: With the budgets that are possible; they are tried one by one, since small ones can have gaps.
    """

    def gives(budget: int) -> bool:
        mean = mean_of(budget)
        return mean is not None and abs(mean - budget) <= TOLERANCE * budget

    if isinstance(keep, int) and not isinstance(keep, bool) and 1 <= keep <= tokens and gives(keep):
        return keep
    possible = [budget for budget in range(1, tokens + 1) if gives(budget)]
    if not possible:
        raise UsageError(f"{method} has no budget on this model, which has {tokens} visual tokens; use another method")
    which = f"a whole number from {possible[0]} to {possible[-1]}"
    if isinstance(keep, int) and possible[0] < keep < possible[-1]:
        below, above = (pick(each for each in possible if (each > keep) == more) for pick, more in ((max, 0), (min, 1)))
        which += f", of which {below} and {above} are the nearest"
    raise UsageError(f"keep={keep!r} is not allowed for {method} on this model; give {which}")
