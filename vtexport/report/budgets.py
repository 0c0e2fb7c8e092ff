"""Curves over visual tokens: what a budget costs and wins, a line a method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vtexport.eval.report import Report as Evaluation
from vtexport.measure.answer import AGAINST
from vtexport.measure.record import Report as Measurement
from vtexport.report.collect import Sources
from vtexport.report.figures import Point
from vtexport.report.states import State, states

ADAPTIVE, UNKNOWN = "adaptive", "unknown"


@dataclass(frozen=True)
class Budget:
    """One quantity over visual tokens: points by method, or the reason why there are none and the command.

    All budgets of a page have the same methods in the same order, so that a method keeps its colour.
    """

    title: str
    unit: str
    series: dict[str, list[Point]]
    reason: str
    command: str


def budgets(sources: Sources) -> list[Budget]:
    """Time to first token, energy of an answer, and accuracy; this bundle's plans alone."""
    by_source = {state.source: state for state in states(sources)}
    bench, asked = sources.bench.value, sources.evaluation.value
    times = first_token(bench) if bench else []
    joules = energy(bench) if bench else []
    right = accuracy(asked) if asked else []
    methods = sorted({method for method, _ in (*times, *joules, *right)})
    return [
        _budget("Time to first token", "ms", methods, times, by_source["bench"], ""),
        _budget("Energy of an answer", "J", methods, joules, by_source["bench"], " --energy"),
        _budget("Accuracy", "%", methods, right, by_source["eval"], ""),
    ]


def first_token(report: Measurement) -> list[tuple[str, Point]]:
    """Method and point of each plan: mean visual tokens, median milliseconds."""
    methods = _methods(report)
    return [
        (methods.get(plan.name, UNKNOWN), Point(plan.name, plan.visual_tokens, plan.first_token_ms.p50))
        for plan in report.plans
        if not plan.name.startswith(AGAINST)
    ]


def energy(report: Measurement) -> list[tuple[str, Point]]:
    """The same in joules an answer, of plans whose energy is known."""
    methods, figures = _methods(report), {plan.name: plan for plan in report.plans}
    return [
        (methods.get(each.plan, UNKNOWN), Point(each.plan, figures[each.plan].visual_tokens, each.joules_each))
        for each in report.energy
        if each.what == "answer" and each.joules_each is not None and each.plan in figures
        if not each.plan.startswith(AGAINST)
    ]


def accuracy(report: Evaluation) -> list[tuple[str, Point]]:
    """The same in percent of the questions, the mean over tasks."""
    return [
        (plan.method, Point(plan.plan, plan.visual_tokens, 100 * plan.all_tasks.accuracy.value))
        for plan in report.plans
    ]


def _methods(report: Measurement) -> dict[str, str]:
    return {plan.name: plan.method or ADAPTIVE for plan in report.header.plans}


def _budget(
    title: str, unit: str, methods: Iterable[str], points: Iterable[tuple[str, Point]], state: State, more: str
) -> Budget:
    series: dict[str, list[Point]] = {method: [] for method in methods}
    for method, point in points:
        series[method].append(point)
    reason = f"{title.lower()} was not measured" if state.state != "not checked" else state.detail
    return Budget(title, unit, series, reason, state.command + more)
