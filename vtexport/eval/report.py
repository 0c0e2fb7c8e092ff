"""From records to figures: accuracy by task with intervals, retention on the same samples, tokens, times.

A task's interval is Wilson's, and that of a mean over tasks follows from theirs. Retention has one from a bootstrap
that draws whole images with replacement, because two plans' answers to one question are anything but independent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from vtexport.bundle.manifest import AdaptivePlan, Plan
from vtexport.bundle.reader import Bundle
from vtexport.eval.answering import Answered, PlanRun
from vtexport.eval.dataset import BadLine, Metric
from vtexport.eval.metrics import f1, says_yes, wilson, yes_no_word

UNPRUNED = "none"  # the method of the plan that keeps all tokens
BOXES: Metric = "IoU >= 0.5"
DRAWS = 2000  # of the bootstrap
_CHUNK = 200  # draws held in memory at a time


class Share(msgspec.Struct, kw_only=True):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class YesNo(msgspec.Struct, kw_only=True):
    """As POPE scores answers to yes-or-no questions: yes is the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


class Task(msgspec.Struct, kw_only=True):
    """One task's figures. `retention` is of its accuracy, against the unpruned plan."""

    metric: Metric
    samples: int
    accuracy: Share
    retention: Share | None = None
    yes_no: YesNo | None = None  # where every reference is yes or no


class Summary(msgspec.Struct, kw_only=True):
    """The mean over tasks, each counting the same."""

    tasks: int
    accuracy: Share
    retention: Share | None = None


class Times(msgspec.Struct, kw_only=True):
    """Milliseconds of one answer: medians, and the 95th percentile of the whole answer."""

    preprocess: float
    vision: float
    prune: float
    prefill: float
    first_token: float
    total: float
    total_p95: float


class PlanReport(msgspec.Struct, kw_only=True):
    """Figures of one plan."""

    plan: str
    method: str
    keep: int | None  # None for an adaptive plan
    paper: str | None
    tasks: dict[str, Task]
    all_tasks: Summary
    question_answering: Summary | None  # all tasks but boxes
    grounding: Summary | None  # boxes
    visual_tokens: float  # that enter the language model, mean over the answers
    tokens_per_layer: float  # mean over its layers and the answers
    new_tokens: float
    times_ms: Times
    machine: dict[str, Any]  # that the plan was asked on, from its first record on
    records: str


class FailedPlan(msgspec.Struct):
    """A plan that could not be asked."""

    plan: str
    reason: str
    exit_code: int


class Report(msgspec.Struct, kw_only=True):
    """An evaluation's result."""

    bundle: str
    source: dict[str, Any]  # the checkpoint it was made from, with its files' hashes
    command: str
    created_at: str  # UTC, ISO 8601
    dataset: str
    samples: int  # that every plan answered; all figures are over these
    images: int
    unpruned: str | None  # the plan that retention is against
    bad_lines: list[dict[str, Any]]
    settings: dict[str, Any]
    machine: dict[str, Any]
    plans: list[PlanReport]
    failed: list[FailedPlan] = []


def make_report(
    bundle: Bundle,
    dataset: str,
    bad: Sequence[BadLine],
    runs: Sequence[PlanRun],
    failed: Sequence[FailedPlan],
    described: Mapping[str, Any],
) -> Report:
    """The figures of several plans over the samples that all of them answered.

    Args:
        bundle, dataset: what was run on what.
        bad: lines of the dataset that could not be read.
        runs: one for each plan, at least one.
        failed: plans that are not among them.
        described: `settings`, `machine`, `command` and `created_at`.
    """
    reasons = {line.number: line.reason for line in bad}
    for run in runs:
        reasons |= {line.number: line.reason for line in run.bad}
    common = set.intersection(*({each.question.number for each in run.answered} for run in runs)) - set(reasons)
    answered = {run.plan: [each for each in run.answered if each.question.number in common] for run in runs}
    methods = {plan.name: plan.method for plan in bundle.manifest.plans}
    unpruned = next((run.plan for run in runs if methods.get(run.plan) == UNPRUNED), None)
    draws = _Draws(answered[runs[0].plan])
    tables = {plan: _Table(each, draws) for plan, each in answered.items()}
    return Report(
        bundle=str(bundle.folder),
        source=msgspec.to_builtins(bundle.manifest.source),
        dataset=dataset,
        samples=len(common),
        images=len(draws.images),
        unpruned=unpruned,
        bad_lines=[{"line": number, "reason": reason} for number, reason in sorted(reasons.items())],
        plans=[
            _plan_report(
                bundle.plan_or_adaptive(run.plan),
                run,
                answered[run.plan],
                tables[run.plan],
                tables[unpruned] if unpruned not in {None, run.plan} else None,
            )
            for run in runs
        ],
        failed=list(failed),
        **described,
    )


def _plan_report(
    chosen: Plan | AdaptivePlan, run: PlanRun, answered: list[Answered], table: _Table, against: _Table | None
) -> PlanReport:
    plan = chosen if isinstance(chosen, Plan) else None
    of_boxes = [task for task, metric in table.metrics.items() if metric == BOXES]
    others = [task for task in table.metrics if task not in of_boxes]
    records = [each.record for each in answered]
    return PlanReport(
        plan=run.plan,
        method=plan.method if plan else "adaptive",
        keep=plan.keep if plan else None,
        paper=plan.paper if plan else None,
        tasks={
            task: Task(
                metric=metric,
                samples=table.samples(task),
                accuracy=table.share(task),
                retention=_retention(table, against, [task]),
                yes_no=_yes_no(each for each in answered if each.question.task == task),
            )
            for task, metric in table.metrics.items()
        },
        all_tasks=_summary(table, against, list(table.metrics)),
        question_answering=_summary(table, against, others) if others else None,
        grounding=_summary(table, against, of_boxes) if of_boxes else None,
        visual_tokens=float(np.mean([record.visual_tokens for record in records])),
        tokens_per_layer=float(np.mean([record.tokens_per_layer for record in records])),
        new_tokens=float(np.mean([record.new_tokens for record in records])),
        times_ms=_times([record.timings_ms for record in records]),
        machine=dict(run.machine),
        records=str(run.records),
    )


class _Draws:
    """Numbers of draws of each image: `weights()` gives [draws, images] in chunks, the same at every call."""

    def __init__(self, answered: Sequence[Answered]):
        self.images: dict[str, int] = {}
        for each in answered:
            self.images.setdefault(each.image, len(self.images))

    def weights(self) -> Iterable[np.ndarray]:
        generator = np.random.default_rng(0)
        count = len(self.images)
        for _ in range(DRAWS // _CHUNK):
            yield generator.multinomial(count, np.full(count, 1 / count), size=_CHUNK).astype(np.float64)


class _Table:
    """One plan's scores and their counts by image and task, [images, tasks]."""

    def __init__(self, answered: Sequence[Answered], draws: _Draws):
        self._draws = draws
        # In the order in which the result's file has them: that of the questions is a matter of chance.
        self.metrics: dict[str, Metric] = dict(
            sorted({q.task: q.metric for q in (a.question for a in answered)}.items())
        )
        self._column = {task: number for number, task in enumerate(self.metrics)}
        self._scores = np.zeros((len(draws.images), len(self.metrics)))
        self._counts = np.zeros_like(self._scores)
        for each in answered:
            at = draws.images[each.image], self._column[each.question.task]
            self._scores[at] += each.record.score
            self._counts[at] += 1

    def samples(self, task: str) -> int:
        return int(self._counts[:, self._column[task]].sum())

    def mean(self, tasks: Sequence[str]) -> float:
        """The mean over tasks of their mean scores."""
        columns = [self._column[task] for task in tasks]
        return float((self._scores.sum(axis=0) / self._counts.sum(axis=0))[columns].mean())

    def share(self, task: str) -> Share:
        value = self.mean([task])
        low, high = wilson(value, self.samples(task))
        return Share(value=value, low=low, high=high)

    def drawn_means(self, tasks: Sequence[str]) -> np.ndarray:
        """[draws]: `mean` in each draw; NaN where a task has no sample in it."""
        return self._drawn[:, [self._column[task] for task in tasks]].mean(axis=1)

    @functools.cached_property
    def _drawn(self) -> np.ndarray:
        """[draws, tasks]"""
        with np.errstate(invalid="ignore"):
            return np.concatenate([(w @ self._scores) / (w @ self._counts) for w in self._draws.weights()])


def _summary(table: _Table, against: _Table | None, tasks: list[str]) -> Summary:
    """The mean's interval from the tasks' own by the squares of their arms (MOVER: Zou and Donner, 2008)."""
    shares = [table.share(task) for task in tasks]
    value = table.mean(tasks)
    below = math.sqrt(sum((share.value - share.low) ** 2 for share in shares)) / len(tasks)
    above = math.sqrt(sum((share.high - share.value) ** 2 for share in shares)) / len(tasks)
    accuracy = Share(value=value, low=max(0.0, value - below), high=min(1.0, value + above))
    return Summary(tasks=len(tasks), accuracy=accuracy, retention=_retention(table, against, tasks))


def _retention(table: _Table, against: _Table | None, tasks: list[str]) -> Share | None:
    """Accuracy over the unpruned plan's; None where that is 0 or there is no such plan."""
    if against is None or not (base := against.mean(tasks)):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = table.drawn_means(tasks) / against.drawn_means(tasks)
    value, drawn = table.mean(tasks) / base, drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
    return Share(value=value, low=float(low), high=float(high))


def _yes_no(answered: Iterable[Answered]) -> YesNo | None:
    pairs = []
    for each in answered:
        truth = yes_no_word(each.question.answer) if each.question.metric == "exact match" else None
        if truth is None:
            return None
        pairs.append((says_yes(each.record.answer), truth))
    said, true = (np.array(column) for column in zip(*pairs, strict=True))
    hits, false_alarms, misses = int((said & true).sum()), int((said & ~true).sum()), int((~said & true).sum())
    return YesNo(
        accuracy=float((said == true).mean()),
        precision=hits / (hits + false_alarms) if hits + false_alarms else 0.0,
        recall=hits / (hits + misses) if hits + misses else 0.0,
        f1=f1(hits, false_alarms, misses),
        yes_ratio=float(said.mean()),
    )


def _times(all_times: Sequence[Mapping[str, float]]) -> Times:
    def median(stage: str) -> float:
        return float(np.median([times[stage] for times in all_times]))

    stages = ("preprocess", "vision", "prune", "prefill", "first_token", "total")
    p95 = float(np.percentile([times["total"] for times in all_times], 95))
    return Times(**{stage: median(stage) for stage in stages}, total_p95=p95)
