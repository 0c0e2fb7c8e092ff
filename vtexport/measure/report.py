"""From the lines of a measurement to its report: figures of plans, ratios, agreement of halves, break-even, soak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec
import numpy as np

from vtexport.measure.answer import AGAINST
from vtexport.measure.break_even import Costs, break_even
from vtexport.measure.record import (
    BreakEven,
    Calibration,
    EnergyWindow,
    Failure,
    Header,
    Line,
    Memory,
    Note,
    PlanFigures,
    PowerFacts,
    Ratio,
    Report,
    Sample,
    Soak,
    StateAt,
)
from vtexport.measure.state import MachineState, changes
from vtexport.measure.statistics import QUIET, figures, half_ratios, median_ratio, quarters, slope

UNPRUNED = "none"  # the method that keeps all visual tokens
UNATTRIBUTED = 0.02  # of the whole answer, which the stages may leave
FEW = 50  # samples, below which high percentiles say little
_FEWEST_TURNS = 4  # for ratios: two in each half
_OTHERS = 0.05  # cores that other programs may have had on average
_DRIFT = 0.05  # of the machine's own speed, before and after
Quantity = Literal["first_token_ms", "total_ms"]
T = TypeVar("T")


def make_report(header: Header, lines: Sequence[Line], finished_at: str, interrupted: str | None = None) -> Report:
    """The report of a measurement, whole or ended early.

    Args:
        header, lines: as `vtexport.measure.partial` keeps them.
        finished_at: UTC, ISO 8601.
        interrupted: what ended it, where it did not run to its end.
    """
    samples = _of(lines, Sample)
    names = [plan.name for plan in header.plans if any(sample.plan == plan.name for sample in samples)]
    paired = _paired(samples, names)
    power = _of(lines, PowerFacts)
    report = Report(
        header=header,
        finished_at=finished_at,
        interrupted=interrupted,
        plans=[_plan(name, [sample for sample in samples if sample.plan == name]) for name in names],
        ratios=_ratios(header, paired) if header.mode == "bench" else [],
        quiet=None,
        break_even=_break_even(header, paired) if header.mode == "bench" else None,
        warnings=[],
        samples=samples,
        failures=_of(lines, Failure),
        states=_of(lines, StateAt),
        calibrations=_of(lines, Calibration),
        memory=_of(lines, Memory),
        power=power[-1] if power else None,
        energy=_of(lines, EnergyWindow),
        notes=[note.text for note in _of(lines, Note)],
    )
    if report.ratios:
        others = _others(report.states)
        calm = others is None or others <= _OTHERS
        report.quiet = calm and all(ratio.apart <= QUIET for ratio in report.ratios)
    if header.mode == "soak":
        report.soak = _soak(report)
    report.warnings = _warnings(report)
    return report


def _of(lines: Sequence[Line], kind: type[T]) -> list[T]:
    return [line for line in lines if isinstance(line, kind)]


def _plan(name: str, samples: Sequence[Sample]) -> PlanFigures:
    total, first = _array(samples, "total_ms"), _array(samples, "first_token_ms")
    stages = {stage: np.asarray([sample.stages_ms[stage] for sample in samples]) for stage in samples[0].stages_ms}
    # Of the stages' sum, which a clock of its own may exceed by its resolution alone.
    left = np.abs(total - np.sum(list(stages.values()), axis=0)) / total
    decoded = [each for sample in samples for each in sample.decode_ms]
    token = figures(decoded) if decoded else None
    vision = float(np.median(stages["vision"]))
    return PlanFigures(
        name=name,
        visual_tokens=float(np.mean([sample.visual_tokens for sample in samples])),
        prompt_tokens=float(np.mean([sample.prompt_tokens for sample in samples])),
        first_token_ms=figures(first),
        total_ms=figures(total),
        stages_ms={stage: figures(values) for stage, values in stages.items()},
        decode_token_ms=token,
        tokens_per_s=1e3 / token.p50 if token is not None and token.p50 > 0 else None,
        unattributed=float(np.median(left)),
        unattributed_max=float(left.max()),
        vision_of_first_token=vision / float(np.median(first)),
        vision_of_total=vision / float(np.median(total)),
    )


def _array(samples: Sequence[Sample], quantity: str) -> np.ndarray:
    return np.asarray([getattr(sample, quantity) for sample in samples], np.float64)


def _paired(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[Sample]]:
    """Each plan's samples of the turns in which all answered, in order: those of one number belong together.

    Where a turn has several answers of a plan, they are told apart by their order.
    """
    by_plan: dict[str, dict[tuple[int, int], Sample]] = {name: {} for name in names}
    counts: dict[tuple[str, int], int] = {}
    for sample in samples:
        within = counts.get((sample.plan, sample.turn), 0)
        counts[sample.plan, sample.turn] = within + 1
        by_plan[sample.plan][sample.turn, within] = sample
    shared = set.intersection(*(set(of) for of in by_plan.values())) if by_plan else set()
    return {name: [of[key] for key in sorted(shared)] for name, of in by_plan.items()}


def _ratios(header: Header, paired: dict[str, list[Sample]]) -> list[Ratio]:
    """Of every plan over the unpruned one (or the first), and over itself in the other bundle."""
    if not paired or len(next(iter(paired.values()))) < _FEWEST_TURNS:
        return []
    own = [plan for plan in header.plans if plan.name in paired and not plan.against]
    reference = next((plan.name for plan in own if plan.method == UNPRUNED), own[0].name if own else None)
    pairs = [(plan.name, reference) for plan in own if reference is not None and plan.name != reference]
    pairs += [(plan.name, AGAINST + plan.name) for plan in own if AGAINST + plan.name in paired]
    return [
        _ratio(one, other, quantity, paired, header.seed)
        for one, other in pairs
        for quantity in ("first_token_ms", "total_ms")
    ]


def _ratio(one: str, other: str, quantity: Quantity, paired: dict[str, list[Sample]], seed: int) -> Ratio:
    ours, theirs = _array(paired[one], quantity), _array(paired[other], quantity)
    first, second, apart = half_ratios(ours, theirs)
    ratio = median_ratio(ours, theirs, seed)
    return Ratio(
        plan=one, over=other, quantity=quantity, ratio=ratio, first_half=first, second_half=second, apart=apart
    )


def _break_even(header: Header, paired: dict[str, list[Sample]]) -> BreakEven | None:
    """Break-even of plans of one method and an unpruned one, measured in enough turns; None of others."""
    own = [plan for plan in header.plans if plan.name in paired and not plan.against]
    unpruned = next((plan for plan in own if plan.method == UNPRUNED), None)
    pruned = [plan for plan in own if plan.method not in (UNPRUNED, None)]
    if unpruned is None or not pruned or len({plan.method for plan in pruned}) > 1:
        return None
    if len(paired[unpruned.name]) < _FEWEST_TURNS:
        return None
    costs = {}
    for plan in (unpruned, *pruned):
        stages = [sample.stages_ms for sample in paired[plan.name]]
        tokens = plan.tokens_per_layer
        assert tokens is not None
        costs[plan.name] = Costs(
            tokens,
            np.asarray([stage["prefill"] + stage["decode"] for stage in stages]),
            np.asarray([stage["prune"] for stage in stages]),
        )
    if len({each.tokens for each in costs.values()}) < 2:
        return None
    return break_even(unpruned.name, costs, header.seed)


def vision_sentence(plan: PlanFigures) -> str:
    """Amdahl's law for the vision tower: what pruning behind it cannot win."""
    first, whole = plan.vision_of_first_token, plan.vision_of_total
    return (
        f"{plan.name}: the vision tower takes {100 * first:.0f} % of the time to first token and {100 * whole:.0f} % "
        f"of the answer; pruning behind it, however cheap, makes them at most {1 / first:.2f} and "
        f"{1 / whole:.2f} times as fast"
    )


def _soak(report: Report) -> Soak | None:
    rate, samples = report.header.rate, report.samples
    assert rate is not None
    errors = [failure for failure in report.failures if failure.plan is not None]
    ends = [sample.at_s + sample.total_ms / 1e3 for sample in samples] + [failure.at_s for failure in errors]
    tried = [sample.due_s or 0.0 for sample in samples] + [failure.at_s for failure in errors]
    until = min(max(ends, default=0.0), report.header.asked_s or np.inf)
    # Image n comes at n / rate; the tiny number is for a rate that is no power of two.
    due = max([int(np.ceil(until * rate - 1e-6)), *(int(each * rate + 1e-6) + 1 for each in tried)])
    seconds = max([due / rate, *ends])
    readings = [(each.at_s, each.state["rss_bytes"]) for each in report.states if each.state.get("rss_bytes")]
    inside = [(at, rss) for at, rss in readings if at >= 0]
    grown = slope([at for at, _ in inside], [float(rss) for _, rss in inside])
    rss = quarters([float(rss) for _, rss in inside])
    drift = quarters(_array(samples, "total_ms"))
    return Soak(
        rate=rate,
        achieved_rate=len(samples) / seconds if seconds > 0 else 0.0,
        seconds=seconds,
        due=due,
        answered=len(samples),
        missed=sum(sample.late_ms is not None and sample.late_ms > 0 for sample in samples),
        dropped=max(due - len(samples) - len(errors), 0),
        errors=len(errors),
        first_quarter_ms=drift[0] if drift else None,
        last_quarter_ms=drift[1] if drift else None,
        drift=drift[1] / drift[0] - 1 if drift else None,
        rss_first_bytes=int(rss[0]) if rss else None,
        rss_last_bytes=int(rss[1]) if rss else None,
        rss_growth_bytes_per_hour=None if grown is None else grown * 3600,
    )


def _warnings(report: Report) -> list[str]:
    said = []
    for plan in report.plans:
        if plan.unattributed > UNATTRIBUTED:
            said.append(
                f"{plan.name}: the stages leave {100 * plan.unattributed:.1f} % of the answer's time unattributed, "
                f"more than {100 * UNATTRIBUTED:g} %"
            )
        if plan.total_ms.samples < FEW:
            said.append(
                f"{plan.name}: {plan.total_ms.samples} samples are few for p95 and p99, which take {FEW} or more"
            )
    said += [
        f"the machine was not quiet: {_title(ratio)} was {ratio.first_half:.3f} in the first half of the turns and "
        f"{ratio.second_half:.3f} in the second, {100 * ratio.apart:.1f} % apart (more than {100 * QUIET:g} %)"
        for ratio in report.ratios
        if ratio.apart > QUIET
    ]
    others = _others(report.states)
    if others is not None and others > _OTHERS:
        said.append(
            f"the machine was not quiet: other programs, or other machines on its hardware, had {others:.2f} of its "
            f"cores meanwhile (more than {_OTHERS:g})"
        )
    before, after = (_speed(report.calibrations, when) for when in ("before", "after"))
    for title, one, other in zip(("matrix products", "memory copies"), before or (), after or (), strict=False):
        if abs(other / one - 1) > _DRIFT:
            said.append(
                f"the machine changed its speed: {title} ran at {100 * other / one:.0f} % after the measurement of "
                "what they ran at before"
            )
    said += _load(report) + _changes(report.states)
    soak = report.soak
    if soak is not None and soak.achieved_rate < 0.99 * soak.rate and soak.dropped:
        said.append(
            f"the rate of {soak.rate:g} a second could not be kept: {soak.achieved_rate:.3g} a second were answered "
            f"and {soak.dropped} of {soak.due} images dropped"
        )
    return said


def _load(report: Report) -> list[str]:
    """A sentence where more wanted to run before the measurement than the machine has cores."""
    before = next((each.state for each in report.states if each.when == "before"), {})
    load, cores = before.get("load_average"), report.header.machine.get("cores")
    if not load or not cores or load[0] <= cores:
        return []
    return [f"other work ran on the machine: the load was {load[0]:.1f} on {cores} cores before the measurement"]


def _others(states: Sequence[StateAt]) -> float | None:
    """Cores that were busy for others than this process, on average from the first to the last reading."""
    read = [(each.at_s, each.state.get("busy_s"), each.state.get("own_busy_s")) for each in states]
    known = sorted((at, busy - own) for at, busy, own in read if busy is not None and own is not None)
    if len(known) < 2 or known[-1][0] - known[0][0] < 1:  # the kernel counts hundredths of a second
        return None
    (begin, before), (end, after) = known[0], known[-1]
    return max(0.0, (after - before) / (end - begin))


def _changes(states: Sequence[StateAt]) -> list[str]:
    """Sentences on what may have moved the times: between the first and the last reading, and in those between."""
    during = [each for each in states if each.when == "during"]
    throttled = [each.state for each in during if each.state.get("throttled")]
    said = []
    if throttled:
        why = ", ".join(dict.fromkeys(reason for state in throttled for reason in state["throttle_reasons"]))
        said.append(f"the machine was throttled in {len(throttled)} of {len(during)} readings meanwhile ({why})")
    ends = [each for each in states if each.when != "during"]
    if len(ends) == 2:
        said += changes(*(msgspec.convert(each.state, MachineState) for each in ends))
    return said


def _title(ratio: Ratio) -> str:
    of = "time to first token" if ratio.quantity == "first_token_ms" else "whole answer"
    return f"the ratio {ratio.plan} : {ratio.over} ({of})"


def _speed(calibrations: Sequence[Calibration], when: str) -> tuple[float, float] | None:
    found = next((each for each in calibrations if each.when == when), None)
    return None if found is None else (found.gemm_gflops, found.copy_gb_per_s)
