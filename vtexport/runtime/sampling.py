"""Choosing the next token from logits: greedy, or sampled from the nucleus."""

from __future__ import annotations

import math

import numpy as np

from vtexport.errors import UsageError


class Sampler:
    """`temperature` 0 takes the largest logit (the lower id on ties); above, it samples from the smallest set of tokens
    whose probability reaches `top_p` (Holtzman et al., arXiv 1904.09751). The same seed gives the same tokens.

    Raises:
        UsageError: temperature negative or not finite, top_p outside (0, 1], seed negative.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None):
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{name} is {value!r}; give a number")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise UsageError(f"seed is {seed!r}; give a whole number")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature is {temperature}; give 0 for greedy or a positive number")
        if not 0 < top_p <= 1:
            raise UsageError(f"top_p is {top_p}; give a number above 0 and at most 1")
        if seed is not None and seed < 0:
            raise UsageError(f"seed is {seed}; give a whole number from 0")
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token's id from logits [V]."""
        if self._temperature == 0:
            return int(np.argmax(logits))
        # The largest first: a tiny temperature would make two infinities of which the difference is not a number.
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - logits.max()) / self._temperature)
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        cumulative /= cumulative[-1]
        nucleus = int(np.searchsorted(cumulative, self._top_p)) + 1
        draw = self._random.random() * cumulative[min(nucleus, len(order)) - 1]
        return int(order[min(int(np.searchsorted(cumulative, draw, side="right")), nucleus - 1, len(order) - 1)])
