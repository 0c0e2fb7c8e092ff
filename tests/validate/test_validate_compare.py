"""Verdicts and their bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtexport.bundle.proof import Arrays, CaseAnswer, Noise, PlanProof
from vtexport.bundle.proof_samples import sample_logits, sample_rows
from vtexport.validate.compare import (
    SURE_MARGIN,
    bounds,
    guarded,
    kept_check,
    least_overlap,
    reach_of,
    tensor_check,
    tokens_check,
)

NOISE = Noise(rms=1e-6, largest=1e-5)


def plan(overlap: float = 1.0) -> PlanProof:
    return PlanProof(
        file="x.npz",
        plan_sha256="0" * 64,
        created_at="",
        command="",
        versions={},
        answers=[CaseAnswer(visual_tokens=4, margins={})],
        strides={"features": 3},
        noise={"features": NOISE, "logits": NOISE},
        overlap={"visual": overlap},
    )


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


def stored(values: np.ndarray) -> Arrays:
    parts = {f"0.features.{name}": each for name, each in sample_rows(values, 3).items()}
    return Arrays(Path("x.npz"), parts | {f"0.logits.{name}": each for name, each in sample_logits(values[0]).items()})


def test_every_row_counts(values: np.ndarray) -> None:
    """One value too far out is found in a stored row by itself, in another by the mean."""
    arrays = stored(values)
    assert tensor_check(arrays, plan(), "float32", 0, "features", values).verdict == "pass"
    for row in range(20):
        moved = values.copy()
        moved[row, 2] += 0.02
        check = tensor_check(arrays, plan(), "float32", 0, "features", moved)
        assert check.verdict == "fail", row
        assert check.measured is not None
        assert check.bound is not None
        assert check.measured > check.bound
    assert tensor_check(arrays, plan(), "float32", 0, "features", values + 1e-7).verdict == "pass"


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_number_is_a_failure(values: np.ndarray, wrong: float) -> None:
    moved = values.copy()
    moved[1, 1] = wrong
    check = tensor_check(stored(values), plan(), "float32", 0, "features", moved)
    assert (check.verdict, check.measured) == ("fail", None)
    assert tensor_check(stored(values), plan(), "float32", 0, "features", values[:, :4]).verdict == "fail"


def test_bounds_are_those_of_the_noise_with_a_floor() -> None:
    assert bounds(NOISE, "float32") == (8e-6, 8e-5)
    assert bounds(Noise(rms=0.0, largest=0.0), "float32") == (8 * 2.0**-23, 50 * 2.0**-23)
    assert bounds(Noise(rms=1e-2, largest=1e-1), "float16") == pytest.approx((3e-2, 3e-1))


def test_kept_tokens() -> None:
    expected = np.arange(20)
    other = np.array([*range(19), 40])

    def verdict(found: np.ndarray, least: float) -> str:
        return kept_check("pipeline", "visual", 0, found, expected, least, {"cut_margin": 0.5}).verdict

    assert verdict(expected, 1.0) == "pass"
    assert verdict(other, 1.0) == "fail"
    assert verdict(other, 0.9) == "differs"
    assert verdict(other[:19], 0.9) == "fail"
    assert verdict(expected[::-1], 1.0) == "fail"  # their order is the prompt's
    assert "cut_margin 0.5" in kept_check("op", "visual", 0, other, expected, 1.0, {"cut_margin": 0.5}).note


def test_the_share_that_has_to_be_the_same() -> None:
    assert least_overlap(plan(), "visual", "float32", {}) == 1.0
    assert least_overlap(plan(), "visual", "float32", {"margin": 2 * SURE_MARGIN}) == 1.0
    assert least_overlap(plan(), "visual", "float32", {"margin": SURE_MARGIN / 2}) == 0.9
    assert least_overlap(plan(), "visual", "float16", {"margin": 1.0}) == 0.9
    assert least_overlap(plan(0.9), "visual", "float32", {}) == pytest.approx(0.8)


def test_tokens() -> None:
    expected, gaps = np.array([5, 6, 7]), np.array([1.0, 1e-6, 1.0], np.float32)
    reach = 1e-5
    assert tokens_check(0, expected, expected, gaps, reach).verdict == "pass"
    close = tokens_check(0, np.array([5, 9, 7]), expected, gaps, reach)
    assert (close.verdict, close.measured) == ("differs", 2.0)
    assert "token 2 is the first that differs" in close.note
    assert tokens_check(0, np.array([5, 9, 8]), expected, gaps, reach).verdict == "fail"


def test_reach_is_twice_the_largest_deviation(values: np.ndarray) -> None:
    scale = float(np.sqrt(np.mean(values[0].astype(np.float64) ** 2)))
    assert reach_of(stored(values), plan(), "float32", 0) == pytest.approx(2 * 8e-5 * scale)


def test_a_replay_that_stops_is_a_failure() -> None:
    def stops() -> list:
        raise KeyError("text_embeds")

    (check,) = guarded(1, "replay", stops)
    assert (check.verdict, check.case) == ("fail", "case 2")
    assert "KeyError: 'text_embeds'" in check.note
