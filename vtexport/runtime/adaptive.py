"""Adaptive plans: every image gets one of several fixed budgets, by how much its patches differ from each other.

The paper's PruneSID-Dyn (arXiv 2603.09480, eq. 7) gives an image N' tokens in proportion to phi = 1 - rho, rho being
the mean cosine between its patches, so that the mean N' over a benchmark is the fixed budget N. Its normaliser and
rounding are not published, and graphs have fixed shapes. Here N' = N phi / normaliser goes to the nearest budget of the
plan (the lower one where two are equally near), and the normaliser is set on a folder of images so that the mean
budget comes as near to N as the budgets allow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from vtexport.bundle.adaptive import Adaptation, budgets_of, read_adaptations
from vtexport.bundle.manifest import AdaptivePlan, Plan
from vtexport.bundle.reader import Bundle
from vtexport.errors import InputError
from vtexport.runtime.answers import BudgetChoice


def redundancy(patches: np.ndarray) -> float:
    """rho: the mean cosine over the pairs of different rows of `patches` [T, D]; 0 for a single row.

    Closed form, (|sum of the unit rows|² - T) / (T (T - 1)), in float32 with the last sums in float64: a tenth of a
    millisecond, and what the op `VtxPruneSID` computes.
    """
    tokens = patches.shape[0]
    if tokens < 2:
        return 0.0
    rows = patches.astype(np.float32, copy=False)
    largest = float(np.abs(rows).max())
    if largest > 1e15:  # their squares would leave float32
        rows = rows / np.float32(largest)
    square = np.einsum("td,td->t", rows, rows)
    floored = np.maximum(square, np.float32(1e-30))  # a zero row is at cosine 0 to everything, as in the op
    resultant = ((1 / np.sqrt(floored)) @ rows).astype(np.float64)
    ones = (square / floored).sum(dtype=np.float64)
    return float((resultant @ resultant - ones) / (tokens * (tokens - 1)))


def nearest_budget(wanted: float, choices: Sequence[int]) -> int:
    """The nearest of `choices` (ascending); the lower one where two are equally near."""
    return min(choices, key=lambda budget: abs(budget - wanted))


class BudgetChooser:
    """An adaptive plan of a bundle, set by images: gives each image its budget."""

    def __init__(self, bundle: Bundle, adaptive: AdaptivePlan):
        """Raises InputError where no images have set the plan yet."""
        adaptation = read_adaptations(bundle.folder, bundle.manifest).get(adaptive.name)
        if adaptation is None:
            raise InputError(
                f"the adaptive plan {adaptive.name} of {bundle.folder} is not set by images yet; run "
                f"`vtexport adapt {bundle.folder} --images FOLDER` first, or name one of its plans: "
                f"{', '.join(adaptive.plans)}"
            )
        self._adaptive = adaptive
        self._normaliser = adaptation.normaliser
        self._plans = bundle.plans_of(adaptive.name)

    def choose(self, patches: np.ndarray) -> tuple[Plan, BudgetChoice]:
        """The plan for an image with these features [T, D]."""
        rho = redundancy(patches)
        wanted = self._adaptive.mean * max(0.0, 1 - rho) / self._normaliser
        budget = nearest_budget(wanted, [plan.keep for plan in self._plans])
        plan = next(plan for plan in self._plans if plan.keep == budget)
        return plan, BudgetChoice(self._adaptive.name, rho, wanted, budget)


def fit(bundle: Bundle, adaptive: AdaptivePlan, redundancies: Sequence[float]) -> Adaptation:
    """The normaliser for which the mean budget of images with these rho is as near the plan's mean as it can be.

    The mean falls in steps as the normaliser grows: an image passes from a budget to the next one where its N' passes
    the middle between the two. All those normalisers are sorted, and of the intervals between them the best is taken
    (the one of the lower mean where two are equally good).

    Raises:
        InputError: no image, or every image has patches that are all alike, so that none can be told from another.
    """
    choices = budgets_of(bundle.manifest, adaptive)
    phi = np.maximum(0.0, 1 - np.asarray(redundancies, np.float64))
    if not (phi > 1e-6).any():
        raise InputError("the images are uniform, so they set no adaptive plan; give photographs")
    middles = [(low + high) / 2 for low, high in itertools.pairwise(choices)]
    steps = np.diff(choices)
    # At the normaliser `edge` an image's N' is at a middle; below the edge it has the next budget.
    edges = np.array([adaptive.mean * each / middle for each in phi for middle in middles])
    gains = np.tile(steps, len(phi))
    real = edges > 0
    order = np.argsort(-edges[real], kind="stable")
    edges, gains = edges[real][order], gains[real][order]
    sums = len(phi) * choices[0] + np.concatenate([[0], np.cumsum(gains)])
    # Interval i lies between edge i - 1 and edge i; equal edges leave no interval between them.
    upper, lower = np.append(edges[0] * 2, edges), np.append(edges, edges[-1] / 2)
    open_ = np.flatnonzero(upper > lower * (1 + 1e-9))
    best = open_[np.argmin(np.abs(sums[open_] / len(phi) - adaptive.mean))]
    normaliser = float(np.sqrt(upper[best] * lower[best]))
    if lower[best] < phi.mean() < upper[best]:
        normaliser = float(phi.mean())  # as the paper has it, where that serves as well

    def budgets_at(divisor: float) -> list[int]:
        return [nearest_budget(adaptive.mean * each / divisor, choices) for each in phi]

    got = budgets_at(normaliser)
    return Adaptation(
        budgets=choices,
        mean=adaptive.mean,
        normaliser=normaliser,
        images=len(phi),
        mean_budget=float(np.mean(got)),
        plain_mean_budget=float(np.mean(budgets_at(float(phi.mean())))),
        images_by_budget={str(budget): got.count(budget) for budget in choices},
    )
