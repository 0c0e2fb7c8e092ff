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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtexport.bundle.manifest import Manifest, Plan
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.build import budgets
from vtexport.cli.console import Progress, command_line, say, say_json, table, tell
from vtexport.cli.eval import add_evaluation_arguments, evaluated, finish, kept, output_folder, percent, questions, save
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.eval.report import PlanReport, Report

_BUDGETS = (192, 128, 64, 32, 16)
_ALL = "all"
_ANY = 0  # in place of a budget, where none is named
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Left:
    """A method at a budget that is not compared, and why."""

    method: str
    keep: int
    reason: str
    exit_code: int = 0  # of a build that failed; a budget that the method cannot give is no failure


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
    from vtexport.eval.evaluate import unpruned_plan
    from vtexport.eval.plot import check_plot, draw
    from vtexport.eval.workers import check_joblib

    # What would be refused after the work is refused before it.
    if args.jobs > 1:
        check_joblib()
    open_dataset(args.dataset, args.limit)
    if args.plot and args.no_plot:
        raise UsageError("--plot and --no-plot exclude each other; give one of them")
    plot = None if args.no_plot else Path(args.plot or output_folder(args) / "sweep.png")
    if plot is not None:
        check_plot(plot)
    bundle, left = _complete(args) if args.model else _as_it_is(args)
    plans = _chosen(bundle, args.methods, args.keep)
    if not plans:
        reasons = f" ({left[0].method} at {left[0].keep}: {left[0].reason})" if left else ""
        raise UsageError(f"{bundle.folder} has no plan to compare{reasons}; give --model to build some")
    unpruned = unpruned_plan(bundle)
    names = [unpruned, *plans] if unpruned is not None else plans
    report = evaluated(args, bundle, names)
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


def _complete(args: argparse.Namespace) -> tuple[Bundle, list[Left]]:
    """The bundle with every plan that is asked for and possible, the unpruned one among them."""
    if not args.methods:
        raise UsageError("--model builds plans and no method is named; give --methods NAME,NAME or --methods all")
    progress = Progress(args.quiet)
    progress.stage("loading the exporter")
    from vtexport.build import Report as BuildReport
    from vtexport.build import build
    from vtexport.cli.explain import explain
    from vtexport.export.plan import make_plans
    from vtexport.pruning import ModelShape, get_method, list_methods, make_options

    def add(method: str, keep: Sequence[int] | None, precision: str) -> Bundle:
        report = BuildReport(progress.stage, progress.note, progress.bytes_done)
        command = command_line()
        return build(
            args.model, args.bundle, method=method, keep=keep, precision=precision, report=report, command=command
        )

    known = {method.name for method in list_methods()}
    methods = _methods(args.methods, sorted(known - {"none"}))
    if not Path(args.bundle).exists():
        bundle = add("none", None, args.precision or "fp32")
    bundle = open_bundle(args.bundle)
    precision = _PRECISIONS[bundle.manifest.precision]
    if args.precision not in {None, precision}:
        raise UsageError(f"{bundle.folder} is in {precision}, not {args.precision}; leave --precision out")
    if not any(plan.method == "none" for plan in bundle.manifest.plans):
        bundle = add("none", None, precision)
    vision = bundle.manifest.vision
    shape = ModelShape((vision.grid_height, vision.grid_width), bundle.manifest.decoder.layers)
    left: list[Left] = []
    failures: list[Exception] = []
    for method in methods:
        missing = []
        for keep in args.keep or _BUDGETS:
            try:
                found = get_method(method)
                (plan,) = make_plans(found, [keep], make_options(found, {}), shape)
            except UsageError as error:
                if method not in known:
                    raise
                left.append(Left(method, keep, str(error)))
                tell(f"left out: {method} at {keep}: {error}")
            else:
                if not _has(bundle.manifest, plan.name):
                    missing.append(keep)
        if missing:
            try:
                bundle = add(method, missing, precision)
            except UsageError:  # of the command, so of every method
                raise
            except Exception as error:  # the others are worth their sweep
                failures.append(error)
                reason, code = explain(error)
                left += [Left(method, keep, reason, code) for keep in missing]
                tell(f"left out: {method} at {', '.join(map(str, missing))}: {reason}")
    if failures and not _chosen(bundle, args.methods, args.keep):
        raise failures[0]
    return bundle, left


def _as_it_is(args: argparse.Namespace) -> tuple[Bundle, list[Left]]:
    """The bundle, and what is asked for and not in it."""
    bundle = open_bundle(args.bundle)
    plans = bundle.manifest.plans
    left = []
    if args.methods:
        methods = _methods(args.methods, sorted({plan.method for plan in plans} - {"none"}))
        there = {(plan.method, plan.keep) for plan in plans}
        wanted = [(method, keep) for method in methods for keep in args.keep or ()]
        missing = [each for each in wanted if each not in there]
        missing += [
            (method, 0) for method in methods if not args.keep and method not in {plan.method for plan in plans}
        ]
        for method, keep in missing:
            left.append(Left(method, keep, f"{bundle.folder} has no such plan; give --model to build it"))
            tell(f"left out: {method}{f' at {keep}' if keep else ''}: {left[-1].reason}")
    return bundle, left


def _methods(named: list[str], known: list[str]) -> list[str]:
    if named == [_ALL]:
        return known
    return list(dict.fromkeys(name.strip() for name in named if name.strip() != "none"))


def _chosen(bundle: Bundle, methods: list[str] | None, keep: list[int] | None) -> list[str]:
    """Pruned plans by name; those of other parameters than the defaults included."""
    wanted = None if methods in (None, [_ALL]) else {name.strip() for name in methods or ()}
    plans = [plan for plan in bundle.manifest.plans if plan.method != "none"]
    plans = [plan for plan in plans if wanted is None or plan.method in wanted]
    chosen = [plan for plan in plans if keep is None or plan.keep in keep]
    return [plan.name for plan in sorted(chosen, key=_order)]


def _order(plan: Plan) -> tuple[str, int]:
    return plan.method, -plan.keep


def _has(manifest: Manifest, name: str) -> bool:
    return any(plan.name == name for plan in manifest.plans)


def _title(report: Report) -> str:
    settings = report.settings
    return (
        f"{Path(report.bundle).name} on {Path(report.dataset).name}: {questions(report)}, whiskers are 95 % intervals; "
        f"{report.machine['cpu']}, {report.machine['cores']} cores, {settings['device']}"
    )


def say_sweep(report: Report, left: Sequence[Left]) -> None:
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
        say(f"left out: {each.method}{f' at {each.keep}' if each.keep else ''}")


def _row(plan: PlanReport, fields: Sequence[str]) -> tuple[str, ...]:
    cells = [plan.plan, f"{plan.tokens_per_layer:.1f}"]
    for field in fields:
        summary = getattr(plan, field)
        cells += [percent(summary.accuracy), kept(summary.retention)] if summary else ["", ""]
    return (*cells, f"{plan.times_ms.first_token:.1f} ms", f"{plan.times_ms.total:.1f} ms")
