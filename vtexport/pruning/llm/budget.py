"""From `--keep N`, the mean number of visual tokens over the decoder's layers, to what each step keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from vtexport.errors import UsageError

TOLERANCE = 0.02  # how far the mean over layers may be from N


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


def refuse_unless_near(method: str, keep: int, mean: float, least: float, most: float) -> None:
    """Refuses a budget that the method's counts miss by more than 2 %.

    Raises:
        UsageError: With the range of budgets.
    """
    if abs(mean - keep) > TOLERANCE * keep or keep > most:
        another = "another" if least <= keep <= most else "a"
        raise UsageError(
            f"keep={keep} is not allowed for {method} on this model: its mean over the layers would be {mean:.1f}; "
            f"give {another} whole number from {-(-least // 1):.0f} to {most:.0f}"
        )


def nearest(candidates: Sequence[int], mean: Callable[[int], float], keep: int) -> int:
    """The candidate whose mean is nearest to `keep`; the smaller of two equally near ones."""
    return min(candidates, key=lambda each: (abs(mean(each) - keep), each))
