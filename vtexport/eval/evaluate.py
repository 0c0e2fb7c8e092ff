"""An evaluation from plans and a dataset to its report, in this process or spread over several."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import InputError, MissingDependencyError, UsageError
from vtexport.eval.answering import PlanRun, Settings, answer_all
from vtexport.eval.dataset import Dataset
from vtexport.eval.machine import describe_machine
from vtexport.eval.report import UNPRUNED, Report, make_report

MOST_JOBS = 256
RECORDS = "records"  # folder of the records in an output folder

# Called with a plan's name and a count of its questions done.
Progress = Callable[[str, int], object]


def evaluate(
    bundle: Bundle,
    plans: Sequence[str],
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    progress: Progress = lambda plan, count: None,
    command: str = "",
) -> Report:
    """Asks plans and routes what they have no record of yet, and reports on all of it.

    Args:
        bundle: an opened bundle.
        plans: names of plans and routes; retention is against the first whose method is `none`.
        dataset: what to ask.
        settings: how; with `jobs` above 1 so many plans are asked at the same time, a process each.
        folder: where records are kept and found again.
        progress: called as questions are done; at the end of each plan where there are several processes.
        command: kept in the result.

    Raises:
        UsageError: no such plan, or a setting is out of range.
        InputError: nothing could be answered, or the records cannot be written.
        MissingDependencyError: several processes, and joblib is not installed.
    """
    if not plans:
        raise UsageError("there is no plan to ask; name one")
    plans = list(dict.fromkeys(plans))
    for plan in plans:
        bundle.plan_or_route(plan)
    if not 1 <= settings.jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {settings.jobs}; give a whole number from 1 to {MOST_JOBS}")
    if settings.jobs > 1 and settings.threads is None:  # or each process would start a thread for every core
        settings = dataclasses.replace(settings, threads=max(1, len(os.sched_getaffinity(0)) // settings.jobs))
    runs = _spread(bundle, plans, dataset, settings, folder / RECORDS, progress)
    described = {
        "settings": settings.described(),
        "machine": describe_machine(),
        "command": command,
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    report = make_report(bundle, dataset.name, dataset.bad, runs, described)
    if not report.samples:
        raise InputError(
            f"no question of {dataset.name} was answered by every one of {', '.join(plans)}; "
            f"line {report.bad_lines[0]['line']}: {report.bad_lines[0]['reason']}"
        )
    return report


def unpruned_plan(bundle: Bundle) -> str | None:
    """The bundle's plan that keeps all tokens, if it has one."""
    return next((plan.name for plan in bundle.manifest.plans if plan.method == UNPRUNED), None)


def check_jobs(jobs: int) -> None:
    """Refuses several processes where joblib is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if jobs > 1:
        _joblib()


def _spread(
    bundle: Bundle, plans: Sequence[str], dataset: Dataset, settings: Settings, folder: Path, progress: Progress
) -> list[PlanRun]:
    if settings.jobs == 1:
        return [
            answer_all(bundle, plan, dataset, settings, folder, functools.partial(progress, plan)) for plan in plans
        ]
    joblib = _joblib()
    tasks = (joblib.delayed(_in_worker)(bundle.folder, plan, dataset, settings, folder) for plan in plans)
    done: dict[str, PlanRun] = {}
    parallel = joblib.Parallel(n_jobs=settings.jobs, backend="loky", return_as="generator_unordered")
    for run in parallel(tasks):
        done[run.plan] = run
        progress(run.plan, len(run.answered) + len(run.bad))
    return [done[plan] for plan in plans]


def _joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingDependencyError(
            f"several processes take joblib, which is not installed ({error}); run pip install 'vtexport[jobs]' or "
            "leave --jobs out"
        ) from error
    return joblib


def _in_worker(folder: Path, plan: str, dataset: Dataset, settings: Settings, records: Path) -> PlanRun:
    """One plan in a process of its own, which ends when the one that waits for it does."""
    _end_with_parent()
    return answer_all(open_bundle(folder), plan, dataset, settings, records)


@functools.cache
def _end_with_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent says so, and this one ends when it has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
