"""Figures from made-up records: means, intervals, retention on the same samples, yes and no."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_records import answered, report

from vtexport.eval.dataset import BadLine
from vtexport.eval.metrics import wilson


def test_tasks_and_their_means() -> None:
    rows = [answered(n, n < 3, image=f"i{n}", task="colour") for n in range(4)]
    rows += [answered(n, n < 5, image=f"i{n}", task="shape") for n in range(4, 6)]
    rows += [answered(6, 1, image="i6", task="grounding")]
    (only,) = report({"none": rows}).plans
    assert {name: (task.samples, task.accuracy.value) for name, task in only.tasks.items()} == {
        "colour": (4, 0.75),
        "shape": (2, 0.5),
        "grounding": (1, 1.0),
    }
    colour = only.tasks["colour"].accuracy
    assert (colour.low, colour.high) == wilson(0.75, 4)
    assert only.question_answering is not None
    assert only.grounding is not None
    # tasks count the same, however many questions they have
    assert only.question_answering.accuracy.value == pytest.approx((0.75 + 0.5) / 2)
    assert only.grounding.accuracy == only.tasks["grounding"].accuracy
    assert only.all_tasks.accuracy.value == pytest.approx((0.75 + 0.5 + 1) / 3)
    below = [each.accuracy.value - each.accuracy.low for each in only.tasks.values()]
    assert only.all_tasks.accuracy.low == pytest.approx(only.all_tasks.accuracy.value - np.linalg.norm(below) / 3)
    assert (only.visual_tokens, only.tokens_per_layer, only.new_tokens) == (64, 32, 3)
    assert (only.times_ms.total, only.times_ms.total_p95) == (3, pytest.approx(5.7))


def test_retention_is_over_the_samples_of_both() -> None:
    whole = [answered(n, n != 0, image=f"i{n}") for n in range(10)]
    pruned = [answered(n, n > 4, image=f"i{n}") for n in range(12)]
    found = report({"none": whole, "p-64": pruned})
    assert (found.samples, found.unpruned) == (10, "none")
    retention = found.plans[1].tasks["t"].retention
    assert retention is not None
    assert retention.value == pytest.approx(5 / 9)
    assert 0.2 < retention.low < 5 / 9 < retention.high < 0.95
    assert found.plans[0].tasks["t"].retention is None


def test_equal_answers_retain_all_with_certainty() -> None:
    """Paired: where two plans answer alike nothing of the samples' own spread is left."""
    rows = [answered(n, n % 3 > 0, image=f"i{n}") for n in range(60)]
    retention = report({"none": rows, "p-64": rows}).plans[1].tasks["t"].retention
    assert retention is not None
    assert (retention.value, retention.low, retention.high) == (1, 1, 1)


def test_retention_of_nothing() -> None:
    wrong = [answered(n, 0, image=f"i{n}") for n in range(5)]
    assert report({"none": wrong, "p-64": wrong}).plans[1].tasks["t"].retention is None
    right = [answered(n, 1, image=f"i{n}") for n in range(5)]
    assert report({"p-64": right, "q-64": right}).plans[1].all_tasks.retention is None  # no unpruned plan


def test_whole_images_are_drawn() -> None:
    """Ten questions about an image are right or wrong together: the interval is that of few images."""
    whole = [answered(n, 1, image=f"i{n // 10}") for n in range(100)]
    by_image = [answered(n, (n // 10) % 2, image=f"i{n // 10}") for n in range(100)]
    alternating = [answered(n, n % 2, image=f"i{n // 10}") for n in range(100)]
    wide, narrow = (
        report({"none": whole, "p-64": rows}).plans[1].tasks["t"].retention for rows in (by_image, alternating)
    )
    assert wide is not None
    assert narrow is not None
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 0.4
    assert narrow.high - narrow.low < 0.01


def test_a_line_that_one_plan_cannot_answer_is_left_out_for_all() -> None:
    rows = [answered(n, 1, image=f"i{n}") for n in range(4)]
    found = report({"none": rows[:3], "p-64": rows}, bad={"none": [BadLine(3, "too long")]})
    assert found.samples == 3
    assert found.bad_lines == [{"line": 3, "reason": "too long"}]
    assert found.plans[1].tasks["t"].samples == 3


def test_yes_and_no() -> None:
    said = [("Yes", "yes"), ("yes, it is", "yes"), ("no", "yes"), ("Yes", "no"), ("No.", "no"), ("there is not", "no")]
    rows = [answered(n, 0, image=f"i{n}", answer=text, reference=true) for n, (text, true) in enumerate(said)]
    scores = report({"none": rows}).plans[0].tasks["t"].yes_no
    assert scores is not None
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.yes_ratio == pytest.approx(0.5)
    mixed = [*rows, answered(9, 0, image="i9", answer="red", reference="red")]
    assert report({"none": mixed}).plans[0].tasks["t"].yes_no is None


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40
    )
)
def test_figures_are_shares_in_their_intervals(rows: list[tuple[str, int, bool, bool]]) -> None:
    whole = [answered(n, a, image=f"i{i}", task=task) for n, (task, i, a, _) in enumerate(rows)]
    pruned = [answered(n, b, image=f"i{i}", task=task) for n, (task, i, _, b) in enumerate(rows)]
    found = report({"none": whole, "p-64": pruned})
    for each in found.plans:
        assert sum(task.samples for task in each.tasks.values()) == len(rows)
        for share in [each.all_tasks.accuracy, *(task.accuracy for task in each.tasks.values())]:
            assert 0 <= share.low <= share.value + 1e-12
            assert share.value <= share.high + 1e-12 <= 1 + 2e-12
    retention = found.plans[1].all_tasks.retention
    base = found.plans[0].all_tasks.accuracy.value
    assert (retention is None) == (base == 0)
    if retention is not None:
        assert retention.value == pytest.approx(found.plans[1].all_tasks.accuracy.value / base)
        assert 0 <= retention.low <= retention.high
    assert report({"none": whole, "p-64": pruned}) == found  # the draws are the same each time
