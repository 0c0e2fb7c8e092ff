"""Figures of a measurement's lines."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from made_up_measurement import header, plan_facts, sample

from vtexport.measure.record import Calibration, Failure, Line, Note, Report, StateAt
from vtexport.measure.report import make_report, vision_sentence

PLANS = [plan_facts("none", "none", 576.0), plan_facts("p-64", tokens=64.0), plan_facts("p-192", tokens=192.0)]


def turns(count: int, totals: dict[str, float], **more: Any) -> list[Line]:
    return [sample(name, turn, total=total, **more) for turn in range(count) for name, total in totals.items()]


def test_figures_of_a_plan() -> None:
    report = make_report(header(), [sample(turn=turn, total=100.0 + turn) for turn in range(5)], "then")
    plan = report.plans[0]
    assert (plan.total_ms.p50, plan.first_token_ms.p50, plan.stages_ms["vision"].p50) == (102.0, 60.0, 20.0)
    assert plan.decode_token_ms is not None
    assert (plan.decode_token_ms.samples, plan.decode_token_ms.p50) == (10, 21.0)
    assert plan.tokens_per_s == pytest.approx(1000 / 21)
    assert plan.unattributed == pytest.approx(0)
    assert (plan.vision_of_first_token, plan.vision_of_total) == pytest.approx((1 / 3, 20 / 102))
    assert "takes 33 % of the time to first token and 20 % of the answer" in vision_sentence(plan)
    assert "at most 3.00 and 5.10 times as fast" in vision_sentence(plan)


def test_answers_of_one_token_decode_none() -> None:
    report = make_report(header(new_tokens=1), [sample(total=60.0, decode_ms=[])], "then")
    assert report.plans[0].decode_token_ms is None
    assert report.plans[0].tokens_per_s is None


@pytest.mark.parametrize(("missing", "said"), [(1.9, False), (2.1, True)])
def test_time_that_no_stage_has_is_said_beyond_two_percent(missing: float, said: bool) -> None:
    lines = []
    for turn in range(60):
        one = sample(turn=turn)
        one.stages_ms["decode"] -= missing
        lines.append(one)
    report = make_report(header(), lines, "then")
    assert report.plans[0].unattributed == pytest.approx(missing / 100)
    assert any("unattributed" in each for each in report.warnings) is said


def test_ratios_are_against_the_unpruned_plan() -> None:
    report = make_report(header(*PLANS), turns(60, {"p-64": 80.0, "none": 200.0, "p-192": 100.0}), "then")
    assert [(each.plan, each.over, each.quantity, each.ratio.value) for each in report.ratios] == [
        ("p-64", "none", "first_token_ms", 1.0),
        ("p-64", "none", "total_ms", 0.4),
        ("p-192", "none", "first_token_ms", 1.0),
        ("p-192", "none", "total_ms", 0.5),
    ]
    assert report.quiet is True
    assert report.warnings == []


@pytest.mark.parametrize(("factor", "quiet"), [(1.029, True), (1.032, False)])
def test_halves_that_disagree_by_more_than_three_percent_are_no_quiet_machine(factor: float, quiet: bool) -> None:
    lines = turns(30, {"none": 100.0, "p-64": 100.0 * factor})
    lines += [with_fields(line, turn=line.turn + 30) for line in turns(30, {"none": 100.0, "p-64": 100.0})]
    report = make_report(header(*PLANS[:2]), lines, "then")
    assert report.quiet is quiet
    assert any(each.startswith("the machine was not quiet: the ratio p-64 : none") for each in report.warnings) != quiet


def with_fields(line: Any, **more: Any) -> Any:
    return msgspec.structs.replace(line, **more)


def test_a_turn_that_was_broken_off_counts_in_no_ratio() -> None:
    lines = turns(60, {"none": 100.0, "p-64": 50.0})
    whole = make_report(header(*PLANS[:2]), lines, "then")
    more = make_report(header(*PLANS[:2]), [*lines, sample("none", 60, total=1e6)], "then", "a signal")
    assert more.ratios == whole.ratios
    assert more.plans[0].total_ms.samples == 61
    assert more.interrupted == "a signal"


def test_blocks_of_answers_pair_by_their_order() -> None:
    lines = [
        sample(name, turn, total=total + within)
        for turn in range(2)
        for name, total in (("none", 100.0), ("p-64", 50.0))
        for within in range(3)
    ]
    ratio = next(each for each in make_report(header(*PLANS[:2]), lines, "then").ratios if each.quantity == "total_ms")
    assert ratio.ratio.value == pytest.approx(51 / 101)


def test_break_even_of_one_method_and_none_of_two() -> None:
    found = make_report(header(*PLANS), turns(10, {"none": 676.0, "p-64": 164.0, "p-192": 292.0}), "then").break_even
    assert found is not None
    assert found.tokens is not None
    # prune costs the same 5 ms in all of them, so every token less pays
    assert found.tokens.value == pytest.approx(576)
    assert found.ms_per_token == pytest.approx(1)
    other = [*PLANS[:2], plan_facts("q-192", "svdprune", 192.0)]
    assert make_report(header(*other), turns(10, {"none": 6.0, "p-64": 1.0, "q-192": 2.0}), "x").break_even is None
    assert make_report(header(*PLANS[1:]), turns(10, {"p-64": 1.0, "p-192": 2.0}), "x").break_even is None


def test_few_samples_a_changed_speed_and_throttling_are_said() -> None:
    lines: list[Line] = [
        Calibration(when="before", threads=2, gemm_gflops=100.0, copy_gb_per_s=10.0),
        *turns(49, {"p": 100.0}),
        StateAt(when="during", at_s=1.0, state={"throttled": True, "throttle_reasons": ["hot"]}),
        StateAt(when="during", at_s=2.0, state={"throttled": None}),
        StateAt(when="before", at_s=-1.0, state={"temperatures_c": {"soc": 40.0}, "load_average": [2.5, 1.0, 1.0]}),
        StateAt(when="after", at_s=2.0, state={"temperatures_c": {"soc": 60.0}}),
        Calibration(when="after", threads=2, gemm_gflops=90.0, copy_gb_per_s=10.4),
        Note(text="noted"),
    ]
    report = make_report(header(), lines, "then")
    assert report.warnings == [
        "p: 49 samples are few for p95 and p99, which take 50 or more",
        "the machine changed its speed: matrix products ran at 90 % after the measurement of what they ran at before",
        "other work ran on the machine: the load was 2.5 on 2 cores before the measurement",
        "the machine was throttled in 1 of 2 readings meanwhile (hot)",
        "soc rose from 40 to 60 °C",
    ]
    assert report.notes == ["noted"]


def test_a_machine_that_others_used_was_not_quiet() -> None:
    def report(others: float) -> Report:
        # 10 s, in which this process had 20 core seconds, 5 of them before the first reading
        states = [
            StateAt(when="before", at_s=-1.0, state={"busy_s": 100.0, "own_busy_s": 5.0}),
            StateAt(when="during", at_s=3.0, state={"busy_s": 112.0}),
            StateAt(when="after", at_s=9.0, state={"busy_s": 115.0 + 10 * others, "own_busy_s": 20.0}),
        ]
        lines: list[Line] = [*turns(60, {"none": 2.0, "p-64": 1.0}), *states]
        return make_report(header(*PLANS[:2]), lines, "then")

    noisy = report(0.25)
    assert noisy.quiet is False
    assert noisy.warnings == [
        "the machine was not quiet: other programs, or other machines on its hardware, had 0.25 of its cores meanwhile "
        "(more than 0.05)"
    ]
    calm = report(0.04)
    assert (calm.quiet, calm.warnings) == (True, [])


def soak(lines: list[Line], rate: float = 2.0, seconds: float = 10.0) -> Report:
    return make_report(header(mode="soak", rate=rate, asked_s=seconds), lines, "then")


def test_a_soak_that_kept_its_rate() -> None:
    lines: list[Line] = [
        sample(turn=turn, at_s=turn / 2, due_s=turn / 2, late_ms=-400.0, total=100.0 + 5 * (turn > 9))
        for turn in range(20)
    ]
    readings = [StateAt(when="during", at_s=float(at), state={"rss_bytes": 10**6 + 100 * at}) for at in range(10)]
    report = soak([*lines, *readings])
    found = report.soak
    assert found is not None
    assert (found.due, found.answered, found.missed, found.dropped, found.errors) == (20, 20, 0, 0, 0)
    assert found.achieved_rate == pytest.approx(2)
    assert found.drift == pytest.approx(0.05)
    assert found.rss_growth_bytes_per_hour == pytest.approx(360_000)
    assert (report.ratios, report.break_even) == ([], None)
    assert not any("could not be kept" in each for each in report.warnings)


def test_a_soak_that_could_not_keep_its_rate() -> None:
    """Answers of 1.1 s to images every 0.5 s: two of three are dropped."""
    dues = [1.5 * number for number in range(7)]
    lines: list[Line] = [
        sample(turn=int(2 * due), at_s=due, due_s=due, late_ms=600.0, total=1100.0) for due in dues if due < 10
    ]
    report = soak(lines)
    found = report.soak
    assert found is not None
    assert (found.due, found.answered, found.missed, found.dropped) == (20, 7, 7, 13)
    assert any("the rate of 2 a second could not be kept: 0.69" in each for each in report.warnings)


def test_an_error_in_a_soak_is_not_a_dropped_image() -> None:
    lines: list[Line] = [Failure(image="unreadable from the start", reason="r", at_s=0.0)]
    lines += [sample(turn=turn, at_s=turn / 2, due_s=turn / 2, late_ms=-1.0) for turn in range(19)]
    lines.append(Failure(image="gone", reason="r", at_s=9.5001, plan="p"))
    found = soak(lines).soak
    assert found is not None
    assert (found.due, found.answered, found.dropped, found.errors) == (20, 19, 0, 1)


@pytest.mark.parametrize("rate", [0.3, 7.0, 29.97])
def test_images_that_came_until_an_interruption(rate: float) -> None:
    lines: list[Line] = [sample(turn=n, at_s=n / rate, due_s=n / rate, late_ms=-1.0, total=1.0) for n in range(11)]
    found = soak(lines, rate, 1e6).soak
    assert found is not None
    assert (found.due, found.dropped) == (11, 0)


def test_an_empty_soak_is_one() -> None:
    found = soak([]).soak
    assert found is not None
    assert (found.answered, found.due, found.drift) == (0, 0, None)
