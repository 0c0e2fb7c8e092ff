"""Compare pruning methods at several budgets in one bundle: a table, and a plot of accuracy against tokens and time.

With --model the plans that the bundle does not have are built into it first; without, those that it has are compared.
A budget that a method cannot give is left out and named. Records and datasets are those of `vtexport eval`, so what it
answered is not asked again, and the same command goes on where an earlier one was ended.

examples:
  vtexport sweep mini --model mini --methods prunesid,vitcop,random,pool --keep 192,64,16
  vtexport sweep mini --model mini --methods all
  vtexport sweep mini --dataset gqa.jsonl --limit 1000 --jobs 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vtexport.bundle.manifest import Manifest
from vtexport.bundle.reader import Bundle
from vtexport.cli.build import budgets
from vtexport.cli.console import Progress, command_line, say, say_json, table, tell
from vtexport.cli.eval import add_evaluation_arguments, evaluated, finish, kept, output_folder, percent, questions, save
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.eval.report import PlanReport, Report
    from vtexport.eval.sweep import Builder, LeftOut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder; with --model it need not exist")
    parser.add_argument(
        "-m", "--model", metavar="MODEL", help="alias, hub id or folder of the checkpoint, to build missing plans"
    )
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        metavar="NAME[,NAME...]",
        help="methods to compare, or all; default: those of the bundle's plans",
    )
    parser.add_argument(
        "--keep",
        type=budgets,
        metavar="N[,N...]",
        help="budgets to compare at; default: those of the bundle's plans, or 192,128,64,32,16 with --methods",
    )
    parser.add_argument("--precision", metavar="fp32|fp16", help="of a bundle that does not exist yet; default: fp32")
    parser.add_argument("--plot", metavar="FILE", help="the plot, .png, .svg or .pdf; default: sweep.png in the output")
    parser.add_argument("--no-plot", action="store_true", help="no plot; it takes matplotlib")
    add_evaluation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Builds what is missing, asks, and shows."""
    from vtexport.eval.dataset import open_dataset
    from vtexport.eval.plot import check_plot, draw
    from vtexport.eval.sweep import as_it_is, complete, plans_to_compare
    from vtexport.eval.workers import check_joblib

    # What would be refused after the work is refused before it.
    if args.jobs > 1:
        check_joblib()
    open_dataset(args.dataset, args.limit)
    if args.plot and args.no_plot:
        raise UsageError("--plot and --no-plot exclude each other; give one of them")
    if args.model and not args.methods:
        raise UsageError("--model builds plans and no method is named; give --methods NAME,NAME or --methods all")
    plot = None if args.no_plot else Path(args.plot or output_folder(args) / "sweep.png")
    if plot is not None:
        check_plot(plot)
    folder = Path(args.bundle)
    if args.model:
        bundle, left = complete(folder, builder(args), args.methods, args.keep, args.precision, tell)
    else:
        bundle, left = as_it_is(folder, args.methods, args.keep, tell)
    report = evaluated(args, bundle, plans_to_compare(bundle, left, args.methods, args.keep))
    result = save(args, "sweep", report, left_out=[vars(each) for each in left])
    if plot is not None:
        draw(report, plot, _title(report))
    if args.json:
        say_json(result)
    else:
        say_sweep(report, left)
        say(f"{output_folder(args) / 'sweep.json'}" + (f", {plot}" if plot is not None else ""))
    code = finish(report, output_folder(args) / "sweep.json")
    return code or next((each.exit_code for each in left if each.exit_code), 0)


def builder(args: argparse.Namespace) -> Builder:
    """The exporter for `args.model` and `args.bundle`, with progress on stderr."""
    progress = Progress(args.quiet)
    progress.stage("loading the exporter")
    from vtexport.build import Report as BuildReport
    from vtexport.build import build
    from vtexport.cli.explain import explain
    from vtexport.eval.sweep import Builder
    from vtexport.pruning import get_method, list_methods

    def plan_name(method: str, keep: int, manifest: Manifest) -> str:
        found, vision = get_method(method), manifest.vision
        grid, layers = (vision.grid_height, vision.grid_width), manifest.decoder.layers
        return f"{method}-{found.schedule(found.parameters(), grid=grid, keep=keep, layers=layers).keep}"

    def add(method: str, keep: Sequence[int] | None, precision: str) -> Bundle:
        report, command = BuildReport(progress.stage, progress.note, progress.bytes_done), command_line()
        return build(
            args.model, args.bundle, method=method, keep=keep, precision=precision, report=report, command=command
        )

    return Builder([method.name for method in list_methods()], plan_name, add, explain)


def _title(report: Report) -> str:
    settings = report.settings
    return (
        f"{Path(report.bundle).name} on {Path(report.dataset).name}: {questions(report)}, whiskers are 95 % intervals; "
        f"{report.machine['cpu']}, {report.machine['cores']} cores, {settings['device']}"
    )


def say_sweep(report: Report, left: Sequence[LeftOut]) -> None:
    """One row a plan, methods in alphabetical order."""
    say(f"{report.bundle} on {report.dataset}: {questions(report)}; 95 % intervals")
    columns = ["plan", "tokens a layer"]
    wanted = [("question answering", "question_answering"), ("grounding", "grounding")]
    shown = [(name, field) for name, field in wanted if any(getattr(plan, field) for plan in report.plans)]
    for name, _ in shown:
        columns += [name, "kept"]
    columns += ["first token", "answer"]
    say(table([_row(plan, [field for _, field in shown]) for plan in report.plans], tuple(columns)))
    for each in left:
        say(f"left out: {each.title}")


def _row(plan: PlanReport, fields: Sequence[str]) -> tuple[str, ...]:
    cells = [plan.plan, f"{plan.tokens_per_layer:.1f}"]
    for field in fields:
        summary = getattr(plan, field)
        cells += [percent(summary.accuracy), kept(summary.retention)] if summary else ["", ""]
    return (*cells, f"{plan.times_ms.first_token:.1f} ms", f"{plan.times_ms.total:.1f} ms")
