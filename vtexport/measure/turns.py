"""Order of turns: every plan answers once a turn, at each place equally often, so that drift hits all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def orders(plans: Sequence[T], seed: int) -> Iterator[list[T]]:
    """The order of each turn, without an end.

    Of every block of as many turns as there are plans, each plan has each place once (a cyclic Latin square), and each
    block begins from another permutation of the seed, so that no plan always comes after the same one.
    """
    random = np.random.default_rng(seed)
    while True:
        base = [plans[number] for number in random.permutation(len(plans))]
        for shift in range(len(base)):
            yield base[shift:] + base[:shift]
