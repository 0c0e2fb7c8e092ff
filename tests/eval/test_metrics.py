"""Scores against hand-made cases, published formulas written otherwise, and properties."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.eval.metrics import (
    exact_match,
    f1,
    iou,
    normalised,
    parse_box,
    says_yes,
    vqa_accuracy,
    wilson,
    yes_no_word,
)

shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Red", "red", 1),
        (" red.\n", "red", 1),
        ('"a  red   cup"', "A red cup", 1),
        ("the red one", "red", 0),
        ("1.5", "15", 0),
        ("-5", "5", 0),
        ("", "red", 0),
        ("STRASSE", "straße", 1),
    ],
)
def test_exact_match(answer: str, reference: str, score: float) -> None:
    assert exact_match(answer, reference) == score


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten(agreeing: int, score: float) -> None:
    """The figures that the benchmark's authors give for the number of annotators who say the same."""
    references = ["red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("A red.", references) == pytest.approx(score)


@given(st.lists(st.sampled_from(["red", "the red", "two", "2", "green"]), min_size=2, max_size=12))
def test_vqa_accuracy_is_the_mean_over_subsets(references: list[str]) -> None:
    """As the paper defines it: over all sets of all annotators but one."""
    said = "2"
    same = {"2", "two"}
    subsets = itertools.combinations(references, len(references) - 1)
    wanted = [min(1.0, sum(each in same for each in subset) / 3) for subset in subsets]
    assert vqa_accuracy(said, references) == pytest.approx(sum(wanted) / len(wanted))


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.12, 0.34, 0.56, 0.78]", (0.12, 0.34, 0.56, 0.78)),
        ("It is at [0,.25,1.,0.5].", (0, 0.25, 1, 0.5)),
        ("[ 0.1 , 0.2 , 0.3 , 0.4 ] and [0.5, 0.5, 0.6, 0.6]", (0.1, 0.2, 0.3, 0.4)),
        ("[-0.1, 0.2, 1.3, 0.4]", (-0.1, 0.2, 1.3, 0.4)),
        ("0.1, 0.2, 0.3, 0.4", None),
        ("[0.1, 0.2, 0.3]", None),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", None),
        ("", None),
    ],
)
def test_boxes_in_answers(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == box


@given(st.tuples(shares, shares, shares, shares))
def test_every_box_is_read_back(box: tuple[float, float, float, float]) -> None:
    text = "[" + ", ".join(f"{value:.17f}" for value in box) + "]"
    assert parse_box(text) == pytest.approx(box)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
        ((0, 0, 1, 1), (0, 0, 0.5, 1), 0.5),
        ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 1 / 7),
        ((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), 0),
        ((0.5, 0.5, 0.2, 0.2), (0, 0, 1, 1), 0),
        ((0.9, 0.9, 0.1, 0.1), (0.1, 0.1, 0.9, 0.9), 0),
    ],
)
def test_iou(a: tuple, b: tuple, value: float) -> None:
    assert iou(a, b) == pytest.approx(value)
    assert iou(b, a) == pytest.approx(value)


@given(*[st.tuples(shares, shares, shares, shares)] * 2)
def test_iou_is_a_share_and_symmetric(a: tuple, b: tuple) -> None:
    assert 0 <= iou(a, b) <= 1 + 1e-9
    assert iou(a, b) == iou(b, a)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is not.", False),
        ("There is no cup in the image", False),
        ("It is not there", False),
        ("Yes. No, wait.", True),
        ("none", True),  # POPE's own rule: the words No, no and not alone
        ("NO", True),
        ("", True),
    ],
)
def test_yes_and_no_as_pope_reads_them(text: str, yes: bool) -> None:
    assert says_yes(text) is yes


def test_references_that_are_yes_or_no() -> None:
    assert [yes_no_word(text) for text in ("Yes", "no.", "maybe")] == [True, False, None]


def test_f1() -> None:
    assert f1(6, 2, 4) == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert f1(0, 0, 0) == 0


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [  # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        (0.0, 10, 0.0, 0.277533),
        (1.0, 10, 0.722467, 1.0),
        (0.5, 10, 0.236593, 0.763407),
        (0.81, 100, 0.722222, 0.874835),
    ],
)
def test_wilson(mean: float, count: int, low: float, high: float) -> None:
    assert wilson(mean, count) == pytest.approx((low, high), abs=1e-4)


@given(shares, st.integers(1, 10**6))
def test_wilson_holds_the_mean(mean: float, count: int) -> None:
    low, high = wilson(mean, count)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    assert math.isclose(high - low, wilson(1 - mean, count)[1] - wilson(1 - mean, count)[0], abs_tol=1e-9)
