"""Limits that a measurement is held to, and another measurement that it must not be slower than."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vtexport.errors import InputError, UsageError
from vtexport.measure.answer import AGAINST
from vtexport.measure.energy import ANSWER
from vtexport.measure.record import Gate, PlanFigures, Report

_NAMES = ("max_ttft_ms", "max_total_ms", "max_memory_mb", "max_energy_j")


@dataclass(frozen=True)
class Limits:
    """Most that every plan may take; None where there is no limit.

    Attributes:
        percentile: Of the samples of a time that its limit is for, above 0 and at most 100.
    """

    max_ttft_ms: float | None = None
    max_total_ms: float | None = None
    max_memory_mb: float | None = None
    max_energy_j: float | None = None
    percentile: float = 50.0

    def check(self) -> None:
        """Refuses values that no limit can have.

        Raises:
            UsageError: one is not positive, or the percentile is out of range.
        """
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; give a number above 0")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"the percentile is {self.percentile}; give a number above 0 and at most 100")

    def given(self) -> dict[str, float]:
        """Those that there are, and the percentile with a limit of time; empty without a limit."""
        found = {name: value for name in _NAMES if (value := getattr(self, name)) is not None}
        timed = {"max_ttft_ms", "max_total_ms"} & set(found)
        return found | ({"percentile": self.percentile} if timed else {})


@dataclass
class Verdict:
    """Sentences on limits that do not hold and on those that nothing is known about."""

    failed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 where a limit does not hold, 3 where one could not be judged, else 0."""
        return 1 if self.failed else 3 if self.unknown else 0

    def gate(self, limits: Limits, against: str | None = None, tolerance: float | None = None) -> Gate | None:
        """The record of it for a report; None where nothing was asked."""
        given = limits.given()
        if not given and against is None:
            return None
        return Gate(limits=given, against=against, tolerance=tolerance, failed=self.failed, unknown=self.unknown)


def judge(report: Report, limits: Limits) -> Verdict:
    """Holds every plan of a report to the limits, those of another bundle left out."""
    verdict = Verdict()
    for plan in report.plans:
        if plan.name.startswith(AGAINST):
            continue
        _times(report, plan.name, limits, verdict)
        _memory(report, plan.name, limits, verdict)
        _energy(report, plan.name, limits, verdict)
    if not report.plans and limits != Limits():
        verdict.unknown.append("nothing was measured, so no limit can be judged")
    return verdict


def _times(report: Report, name: str, limits: Limits, verdict: Verdict) -> None:
    samples = [sample for sample in report.samples if sample.plan == name]
    for title, quantity, limit in (
        ("time to first token", "first_token_ms", limits.max_ttft_ms),
        ("time of the whole answer", "total_ms", limits.max_total_ms),
    ):
        if limit is None:
            continue
        value = float(np.percentile([getattr(sample, quantity) for sample in samples], limits.percentile))
        if value > limit:
            verdict.failed.append(
                f"{name}: the {title} is {value:.1f} ms at p{limits.percentile:g} of {len(samples)} samples, "
                f"{value - limit:.1f} ms ({100 * (value / limit - 1):.1f} %) over the limit of {limit:g} ms"
            )


def _memory(report: Report, name: str, limits: Limits, verdict: Verdict) -> None:
    if limits.max_memory_mb is None:
        return
    found = next((memory for memory in report.memory if memory.plan == name), None)
    if found is None or found.peak_rss_bytes is None:
        why = found.reason if found is not None and found.reason else "it was not measured"
        verdict.unknown.append(f"{name}: the memory is not known ({why}), so its limit cannot be judged")
        return
    value = found.peak_rss_bytes / 1e6
    if value > limits.max_memory_mb:
        verdict.failed.append(
            f"{name}: the peak memory is {value:.0f} MB, {value - limits.max_memory_mb:.0f} MB "
            f"({100 * (value / limits.max_memory_mb - 1):.1f} %) over the limit of {limits.max_memory_mb:g} MB"
        )


def _energy(report: Report, name: str, limits: Limits, verdict: Verdict) -> None:
    if limits.max_energy_j is None:
        return
    found = next((each for each in report.energy if (each.plan, each.what) == (name, ANSWER)), None)
    if found is None or found.joules_each is None:
        reasons = [found.reason if found else None, report.power.reason if report.power else None]
        why = next((reason for reason in reasons if reason), "it was not measured")
        verdict.unknown.append(f"{name}: the energy of an answer is not known ({why}), so its limit cannot be judged")
    elif found.joules_each > limits.max_energy_j:
        value, limit = found.joules_each, limits.max_energy_j
        verdict.failed.append(
            f"{name}: an answer takes {value:.3g} J, {value - limit:.3g} J ({100 * (value / limit - 1):.1f} %) over "
            f"the limit of {limit:g} J"
        )


_ALIKE = ("prompt", "new_tokens", "device", "threads", "logits_processors", "synthetic", "mode")


def check_comparable(report: Report, earlier: Report, where: str) -> list[str]:
    """Sentences on differences between two measurements that do not forbid to compare them.

    Raises:
        InputError: the answers are of another kind, or no plan is in both.
    """
    for name in _ALIKE:
        ours, theirs = getattr(report.header, name), getattr(earlier.header, name)
        if ours != theirs:
            raise InputError(
                f"{where} was measured with {name} {theirs!r} and this with {ours!r}; measure again with the same"
            )
    if not {plan.name for plan in report.plans} & {plan.name for plan in earlier.plans}:
        names = ", ".join(plan.name for plan in earlier.plans)
        raise InputError(f"{where} has none of the plans measured here (it has {names}); choose them with --plan")
    said = []
    for title, ours, theirs in (
        ("processor", report.header.machine.get("cpu"), earlier.header.machine.get("cpu")),
        ("number of cores", report.header.machine.get("cores"), earlier.header.machine.get("cores")),
        ("versions", report.header.versions, earlier.header.versions),
        ("images", report.header.images, earlier.header.images),
    ):
        if ours != theirs:
            said.append(f"{where} has another {title} ({theirs} there, {ours} here)")
    speed, before = _speed(report), _speed(earlier)
    if speed and before and abs(speed / before - 1) > 0.05:
        said.append(
            f"the machine itself ran at {100 * speed / before:.0f} % of its speed then (matrix products, {speed:.1f} "
            f"against {before:.1f} GFLOP/s); measure both bundles in one run for a comparison without that"
        )
    return said


def _speed(report: Report) -> float | None:
    measured = [each.gemm_gflops for each in report.calibrations]
    return float(np.mean(measured)) if measured else None


def judge_against(report: Report, earlier: Report | None, tolerance: float, where: str) -> Verdict:
    """Compares medians with those of the same plans in another report, or of the other bundle in this one.

    Args:
        report: this measurement.
        earlier: the other one; None where the other bundle took part in the turns.
        tolerance: share by which a plan may be slower, 0.05 for 5 %.
        where: what the sentences call the other.
    """
    verdict = Verdict()
    for plan in report.plans:
        if plan.name.startswith(AGAINST):
            continue
        other = earlier.figures(plan.name) if earlier is not None else report.figures(AGAINST + plan.name)
        if other is not None:
            verdict.failed += _slower(plan, other, tolerance, where)
    return verdict


def _slower(plan: PlanFigures, other: PlanFigures, tolerance: float, where: str) -> list[str]:
    said = []
    for title, ours, theirs in (
        ("time to first token", plan.first_token_ms.p50, other.first_token_ms.p50),
        ("time of the whole answer", plan.total_ms.p50, other.total_ms.p50),
    ):
        if ours > theirs * (1 + tolerance):
            said.append(
                f"{plan.name}: the {title} is {ours:.1f} ms and was {theirs:.1f} ms in {where} (medians), "
                f"{100 * (ours / theirs - 1):.1f} % more, where {100 * tolerance:g} % are tolerated"
            )
    return said


def percentile_note(limits: Limits, samples: Sequence[int]) -> str | None:
    """A sentence where so few samples say little of that percentile."""
    beyond = 1 - limits.percentile / 100
    fewest = min(samples, default=0)
    timed = limits.max_ttft_ms is not None or limits.max_total_ms is not None
    if not timed or beyond == 0 or fewest * beyond >= 1:
        return None
    return (
        f"p{limits.percentile:g} of {fewest} samples is nearly their largest; take {int(np.ceil(1 / beyond))} or more"
    )
