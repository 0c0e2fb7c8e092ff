"""An evaluation from plans and a dataset to its report, in this process or spread over several."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import InputError, UsageError, VtexportError, quoted
from vtexport.eval.answering import PlanRun, Settings, answer_all, graphs_here
from vtexport.eval.dataset import Dataset
from vtexport.eval.records import LineCounter, RecordsInUseError, plan_digest, records_path
from vtexport.eval.report import UNPRUNED, FailedPlan, Report, make_report
from vtexport.eval.workers import check_joblib, worker_pool
from vtexport.measure.machine import describe_machine

MOST_JOBS = 256
RECORDS = "records"  # folder of the records in an output folder

_SECONDS_BETWEEN_LOOKS = 1.0  # at what several processes have recorded

# Called with a plan's name and a count of its questions done.
Progress = Callable[[str, int], object]
_KILLED = (
    "a process was killed while it asked, often because memory ran out; give fewer --jobs, and the same command goes on"
)


@dataclass(frozen=True)
class Failure:
    """The reason why a plan could not be asked."""

    plan: str
    error: VtexportError
    is_busy: bool = False  # another process asks it into the same records


Outcome = PlanRun | Failure


def evaluate(
    bundle: Bundle,
    plans: Sequence[str],
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    progress: Progress = lambda plan, count: None,
    command: str = "",
) -> Report:
    """Asks plans what they have no record of yet, and reports on all of it.

    A plan that cannot be asked is named in the report and does not keep others from being asked.

    Args:
        bundle: an opened bundle.
        plans: names of plans, adaptive ones included; retention is against the first whose method is `none`.
        dataset: what to ask.
        settings: how; with `jobs` above 1 so many plans are asked at the same time, a process each.
        folder: where records are kept and found again.
        progress: called as questions are done.
        command: kept in the result.

    Raises:
        UsageError: no such plan, or a setting is out of range.
        MissingDependencyError: several processes, and joblib is not installed.
        VtexportError: no plan could be asked; what kept the first one, as from `answer_all`.
    """
    if not plans:
        raise UsageError("there is no plan to ask; name one")
    plans = list(dict.fromkeys(plans))
    for plan in plans:
        bundle.plan_or_adaptive(plan)
    if not 1 <= settings.jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {settings.jobs}; give a whole number from 1 to {MOST_JOBS}")
    if settings.jobs > 1 and settings.threads is None:  # or each process would start a thread for every core
        settings = dataclasses.replace(settings, threads=max(1, len(os.sched_getaffinity(0)) // settings.jobs))
    if settings.jobs > 1:
        check_joblib()
    outcomes = _spread(bundle, plans, dataset, settings, folder / RECORDS, progress)
    runs = [outcome for outcome in outcomes if isinstance(outcome, PlanRun)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not runs:
        raise failures[0].error
    described = {
        "settings": settings.described(),
        "machine": describe_machine(),
        "command": command,
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    failed = [FailedPlan(each.plan, str(each.error), each.error.exit_code) for each in failures]
    report = make_report(bundle, dataset.name, dataset.bad, runs, failed, described)
    if not report.samples:
        raise InputError(
            f"no question of {dataset.name} was answered by every one of {', '.join(run.plan for run in runs)}; "
            f"line {report.bad_lines[0]['line']}: {report.bad_lines[0]['reason']}"
        )
    return report


def unpruned_plan(bundle: Bundle) -> str | None:
    """The bundle's plan that keeps all tokens, if it has one."""
    return next((plan.name for plan in bundle.manifest.plans if plan.method == UNPRUNED), None)


def plans_to_ask(bundle: Bundle, named: Sequence[str] = (), *, with_unpruned: bool = True) -> list[str]:
    """Names of plans, each once: those that are named, else every plan; the unpruned one is added first."""
    plans = list(dict.fromkeys(named or [plan.name for plan in bundle.manifest.plans]))
    unpruned = unpruned_plan(bundle)
    if with_unpruned and unpruned is not None and unpruned not in plans:
        plans.insert(0, unpruned)
    return plans


def _spread(
    bundle: Bundle, plans: Sequence[str], dataset: Dataset, settings: Settings, folder: Path, progress: Progress
) -> list[Outcome]:
    """Outcomes of all plans. Those whose records another process writes come last: by then it may have ended."""
    done: dict[str, Outcome] = {}
    for outcome in _asked(bundle, plans, dataset, settings, folder, progress):
        done[outcome.plan] = outcome
    busy = [plan for plan in plans if isinstance(outcome := done[plan], Failure) and outcome.is_busy]
    if busy and len(busy) < len(plans):
        for outcome in _asked(bundle, busy, dataset, settings, folder, progress):
            done[outcome.plan] = outcome
    return [done[plan] for plan in plans]


def _asked(
    bundle: Bundle, plans: Sequence[str], dataset: Dataset, settings: Settings, folder: Path, progress: Progress
) -> Iterator[Outcome]:
    processes = min(settings.jobs, len(plans))
    if processes == 1:
        for plan in plans:
            yield _outcome(bundle, plan, dataset, settings, folder, functools.partial(progress, plan))
        return
    described = settings.described()
    counters = {
        plan: LineCounter(
            records_path(folder, plan, plan_digest(bundle, plan, graphs_here(bundle, plan, settings), described))
        )
        for plan in plans
    }
    reported = dict.fromkeys(plans, 0)

    def tell(plan: str, count: int) -> None:
        reported[plan] += count
        progress(plan, count)

    with worker_pool(processes) as pool:
        asked = {pool.submit(_in_worker, bundle.folder, plan, dataset, settings, folder): plan for plan in plans}
        waiting = set(asked)
        while waiting:
            ended, waiting = wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
            for future in waiting:
                tell(asked[future], counters[asked[future]].new())
            for future in ended:
                plan = asked[future]
                try:
                    outcome: Outcome = future.result()
                except BrokenExecutor:  # and with it the processes of all other plans are gone
                    outcome = Failure(plan, VtexportError(_KILLED))
                if isinstance(outcome, PlanRun):  # what had a record before is done as well
                    tell(plan, len(outcome.answered) + len(outcome.bad) - reported[plan])
                yield outcome


def _outcome(
    bundle: Bundle,
    plan: str,
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> Outcome:
    """One plan's answers, or why there are none: the others go on."""
    try:
        return answer_all(bundle, plan, dataset, settings, folder, progress)
    except VtexportError as error:
        return Failure(plan, error, is_busy=isinstance(error, RecordsInUseError))
    except Exception as error:  # such as ONNX Runtime's own, which are as many as its operators
        kind = type(error).__name__
        said = quoted(error, bundle.folder, bundle.folder, limit=200)
        wrapped = VtexportError(
            f"unexpected {kind}: {said}; run `vtexport eval {bundle.folder} --plan {plan} --debug` and report this "
            "with its output"
        )
        wrapped.__cause__ = error
        return Failure(plan, wrapped)


def _in_worker(folder: Path, plan: str, dataset: Dataset, settings: Settings, records: Path) -> Outcome:
    return _outcome(open_bundle(folder), plan, dataset, settings, records)
