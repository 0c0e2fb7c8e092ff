"""Ask a bundle the questions of a dataset and say how many it answers right, next to the unpruned model.

The dataset is `scenes` (pictures that vtexport renders, with questions; no training of mini has seen them) or a JSONL
file with a line a question: `image` (a path relative to the file), `question`, and `answer`, `answers` or `box`;
docs/eval.md has the formats and the metrics. The answers are kept as they come, so the same command goes on where an
earlier one was ended. Ends with exit code 1 where a line could not be used; the result is of the others.

examples:
  vtexport eval mini
  vtexport eval mini --dataset pope.jsonl --plan prunesid-64 --limit 500
  vtexport eval mini --dataset refcoco/val.jsonl --json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import Progress, command_line, counted, say, say_json, table, tell
from vtexport.cli.run import add_logits_processors_argument

if TYPE_CHECKING:
    from vtexport.eval.report import PlanReport, Report, Share, Summary, Task

_MOST_BAD_LINES = 20  # shown one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--plan",
        action="append",
        type=lambda text: text.split(","),
        metavar="NAME[,NAME...]",
        help="plans to ask; default: every plan. The unpruned plan is asked too, where the bundle has one",
    )
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not ask the unpruned plan unless --plan names it"
    )
    add_evaluation_arguments(parser)


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `eval` and `sweep` share."""
    parser.add_argument(
        "--dataset", default="scenes", metavar="scenes|FILE", help="rendered scenes or a JSONL file; default: scenes"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="the first N questions that can be used; default: all, or 1000 about scenes",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add_logits_processors_argument(parser)
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="ask N plans at the same time, a process each (takes joblib); it slows each, and times say so",
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="where records and results go; default: NAME-eval of the bundle, here"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Asks and reports."""
    from vtexport.eval.evaluate import plans_to_ask
    from vtexport.eval.workers import check_joblib

    if args.jobs > 1:
        check_joblib()
    bundle = open_bundle(args.bundle)
    named = [name for names in args.plan or () for name in names]
    plans = plans_to_ask(bundle, named, with_unpruned=not args.no_baseline)
    report = evaluated(args, bundle, plans)
    result = save(args, "eval", report)
    if args.json:
        say_json(result)
    else:
        say_report(report)
    return finish(report, output_folder(args) / "eval.json")


def evaluated(args: argparse.Namespace, bundle: Any, plans: Sequence[str]) -> Report:
    """The report on these plans, by those arguments, with progress on stderr."""
    from vtexport.eval.answering import Settings, notes_here
    from vtexport.eval.dataset import open_dataset
    from vtexport.eval.evaluate import evaluate

    settings = Settings(args.max_new_tokens, args.device, args.threads, args.jobs, args.logits_processors)
    for note in notes_here(bundle, plans, settings):
        tell(f"note: {note}")
    dataset = open_dataset(args.dataset, args.limit)
    progress = Progress(args.quiet)
    folder = output_folder(args)
    progress.stage(
        f"{counted(len(plans), 'plan')} on {dataset.name}; records in {folder}, where the same command goes on"
    )
    with progress.items_done("asking", dataset.most * len(plans), "questions") as done:
        command = command_line()
        return evaluate(bundle, plans, dataset, settings, folder, lambda plan, count: done(count), command)


def output_folder(args: argparse.Namespace) -> Path:
    """Not in the bundle: adding plans replaces its folder."""
    return Path(args.output or f"{Path(args.bundle).resolve().name}-eval")


def save(args: argparse.Namespace, name: str, report: Report, **further: Any) -> dict[str, Any]:
    """Writes NAME.json beside the records, and gives what is in it."""
    from vtexport.measure.files import write_json

    result = msgspec.to_builtins(report) | further
    write_json(output_folder(args) / f"{name}.json", result)
    return result


def finish(report: Report, saved: Path) -> int:
    """Tells of lines that could not be used and plans that could not be asked; the exit code."""
    bad = report.bad_lines
    for line in bad[:_MOST_BAD_LINES]:
        tell(f"line {line['line']}: {line['reason']}")
    if len(bad) > _MOST_BAD_LINES:
        tell(f"and {len(bad) - _MOST_BAD_LINES} more, in {saved}")
    if bad:
        tell(f"vtexport: {len(bad)} of {report.dataset}'s lines could not be used; the result is of the others")
    for failed in report.failed:
        tell(f"vtexport: {failed.plan} is not in the result: {failed.reason}")
    return report.failed[0].exit_code if report.failed else int(bool(bad))


def say_report(report: Report) -> None:
    """Tables: what each plan costs, and its accuracy by task."""
    say(f"{report.bundle} on {report.dataset}: {questions(report)}")
    header = ("plan", "tokens", "a layer", "first token", "answer", "p95")
    say(table([_cost(plan) for plan in report.plans], header))
    for plan in report.plans:
        against = report.unpruned if report.unpruned != plan.plan else None
        rows: list[tuple[str, ...]] = [
            (task, each.metric, _right(each), *_accuracy(each.accuracy), kept(each.retention))
            for task, each in plan.tasks.items()
        ]
        rows += [
            (name, "", "", *_accuracy(of.accuracy), kept(of.retention))
            for name, of in _summaries(plan)
            if of is not None and of.tasks > 1
        ]
        header = ("task", "metric", "right", "share", "95 % interval", f"of {against}'s, %")
        columns = len(header) if against else len(header) - 1
        say(f"\n{plan.plan}")
        say(table([row[:columns] for row in rows], header[:columns]))
        for task, each in plan.tasks.items():
            if each.yes_no is not None:
                scores = each.yes_no
                say(
                    f"{task} as POPE scores it: accuracy {100 * scores.accuracy:.1f}, precision "
                    f"{100 * scores.precision:.1f}, recall {100 * scores.recall:.1f}, F1 {100 * scores.f1:.1f}, "
                    f"{100 * scores.yes_ratio:.1f} % yes"
                )


def questions(report: Report) -> str:
    """`1000 questions about 160 images`"""
    return f"{counted(report.samples, 'question')} about {counted(report.images, 'image')}"


def _summaries(plan: PlanReport) -> list[tuple[str, Summary | None]]:
    kinds = [("mean of question answering", plan.question_answering), ("mean of grounding", plan.grounding)]
    return [*kinds, ("mean of all tasks", plan.all_tasks)] if all(of for _, of in kinds) else kinds


def _right(task: Task) -> str:
    """`148 of 150`; scores between 0 and 1 add up to tenths."""
    return f"{round(task.accuracy.value * task.samples, 1):g} of {task.samples}"


def _accuracy(share: Share) -> tuple[str, str]:
    return f"{100 * share.value:.1f} %", f"{100 * share.low:.1f} to {100 * share.high:.1f} %"


def _cost(plan: PlanReport) -> tuple[str, ...]:
    times = plan.times_ms
    return (
        plan.plan,
        f"{plan.visual_tokens:.1f}",
        f"{plan.tokens_per_layer:.1f}",
        f"{times.first_token:.1f} ms",
        f"{times.total:.1f} ms",
        f"{times.total_p95:.1f} ms",
    )


def percent(share: Share) -> str:
    """`91.2 (88.0 to 93.6)`"""
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def kept(share: Share | None) -> str:
    """The same of a retention, or nothing."""
    return percent(share) if share is not None else ""
