"""Limits at their boundaries, what is not known, and another measurement to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from made_up_measurement import header, plan_facts, sample

from vtexport.errors import InputError, UsageError
from vtexport.measure.gate import Limits, check_comparable, judge, judge_against, percentile_note
from vtexport.measure.record import Calibration, EnergyWindow, Line, Memory, PowerFacts, Report
from vtexport.measure.report import make_report


def report(*lines: Line, total: float = 100.0, first: float = 60.0, **more: Any) -> Report:
    samples = [sample(turn=turn, total=total, first=first) for turn in range(4)]
    return make_report(header(**more), [*samples, *lines], "then")


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (Limits(max_ttft_ms=60.0), None),
        (Limits(max_total_ms=100.0), None),
        (Limits(max_memory_mb=120.0), Memory(plan="p", peak_rss_bytes=120_000_000)),
        (Limits(max_energy_j=2.0), EnergyWindow(plan="p", what="answer", count=5, joules_each=2.0)),
    ],
)
def test_at_its_limit_a_plan_passes_and_above_it_fails(limits: Limits, line: Line | None) -> None:
    measured = report(*([line] if line else []))
    assert judge(measured, limits).exit_code == 0
    (name, value), *_ = ((each, of) for each, of in dataclasses.asdict(limits).items() if of and each != "percentile")
    verdict = judge(measured, dataclasses.replace(limits, **{name: 0.8 * value}))
    assert verdict.exit_code == 1
    assert len(verdict.failed) == 1
    assert verdict.failed[0].startswith("p: ")
    assert "(25.0 %) over the limit" in verdict.failed[0]


def test_a_time_is_judged_at_its_percentile() -> None:
    samples = [sample(turn=turn, first=50.0 + turn) for turn in range(101)]
    measured = make_report(header(), samples, "then")
    assert judge(measured, Limits(max_ttft_ms=149.0, percentile=99)).exit_code == 0
    failed = judge(measured, Limits(max_ttft_ms=148.0, percentile=99)).failed
    assert failed == [
        "p: the time to first token is 149.0 ms at p99 of 101 samples, 1.0 ms (0.7 %) over the limit of 148 ms"
    ]
    assert judge(measured, Limits(max_ttft_ms=100.0)).exit_code == 0


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "it was not measured"),
        ([PowerFacts(reason="no sensor is here")], "no sensor is here"),
        ([EnergyWindow(plan="p", what="answer", reason="too few readings")], "too few readings"),
        ([EnergyWindow(plan="p", what="prefill", joules_each=0.1)], "it was not measured"),
    ],
)
def test_unknown_energy_is_no_pass(lines: list[Line], reason: str) -> None:
    verdict = judge(report(*lines), Limits(max_energy_j=1.0))
    assert verdict.exit_code == 3
    assert verdict.unknown == [f"p: the energy of an answer is not known ({reason}), so its limit cannot be judged"]


def test_unknown_memory_is_no_pass() -> None:
    verdict = judge(report(Memory(plan="p", reason="its process ended with -9")), Limits(max_memory_mb=1.0))
    assert (verdict.exit_code, len(verdict.unknown)) == (3, 1)
    assert "its process ended with -9" in verdict.unknown[0]


def test_a_limit_that_does_not_hold_comes_before_one_that_is_unknown() -> None:
    assert judge(report(), Limits(max_ttft_ms=1.0, max_energy_j=1.0)).exit_code == 1


def test_nothing_measured_is_no_pass() -> None:
    assert judge(make_report(header(), [], "then"), Limits(max_ttft_ms=1.0)).exit_code == 3


@pytest.mark.parametrize(
    "wrong",
    [Limits(max_ttft_ms=0.0), Limits(max_total_ms=float("nan")), Limits(max_memory_mb=-1.0), Limits(percentile=0.0),
     Limits(percentile=100.1)],
)  # fmt: skip
def test_limits_that_cannot_be(wrong: Limits) -> None:
    with pytest.raises(UsageError):
        wrong.check()


def test_slower_than_an_earlier_report_by_more_than_is_tolerated() -> None:
    earlier = report()
    assert judge_against(report(total=105.0), earlier, 0.05, "old.json").failed == []
    assert judge_against(report(total=105.1), earlier, 0.05, "old.json").failed == [
        "p: the time of the whole answer is 105.1 ms and was 100.0 ms in old.json (medians), 5.1 % more, where 5 % are "
        "tolerated"
    ]
    assert judge_against(report(total=90.0), earlier, 0.0, "old.json").exit_code == 0


def test_slower_than_the_other_bundle_of_the_same_turns() -> None:
    facts = header(plan_facts("p"), plan_facts("against:p", against=True))
    lines = [
        each for turn in range(4) for each in (sample("p", turn, total=120.0), sample("against:p", turn, total=100.0))
    ]
    verdict = judge_against(make_report(facts, lines, "then"), None, 0.1, "other")
    assert len(verdict.failed) == 1
    assert "p: the time of the whole answer is 120.0 ms and was 100.0 ms in other" in verdict.failed[0]


@pytest.mark.parametrize(
    "more", [{"prompt": "Else?"}, {"new_tokens": 4}, {"threads": 1}, {"device": "cuda"}, {"synthetic": False}]
)
def test_answers_of_another_kind_are_not_compared(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"old.json was measured with {next(iter(more))} "):
        check_comparable(report(), report(**more), "old.json")


def test_a_report_without_the_plan_is_not_compared() -> None:
    other = make_report(header(plan_facts("q")), [sample("q")], "then")
    with pytest.raises(InputError, match="has none of the plans measured here"):
        check_comparable(report(), other, "old.json")


def test_another_machine_or_another_speed_of_it_is_said() -> None:
    slow, fast = (Calibration(when="before", threads=2, gemm_gflops=of, copy_gb_per_s=9.0) for of in (80.0, 100.0))
    said = check_comparable(report(slow), report(fast, machine={"cpu": "older", "cores": 4}), "old.json")
    assert [each.split(" (")[0] for each in said] == [
        "old.json has another processor",
        "old.json has another number of cores",
        "the machine itself ran at 80 % of its speed then",
    ]
    assert check_comparable(report(slow), report(slow), "old.json") == []


def test_few_samples_for_a_percentile_are_said() -> None:
    limits = Limits(max_ttft_ms=1.0, percentile=99)
    said = percentile_note(limits, [50])
    assert said is not None
    assert said.endswith("take 100 or more")
    assert percentile_note(limits, [100]) is None
    assert percentile_note(Limits(percentile=99), [50]) is None
