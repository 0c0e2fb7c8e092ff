"""Compare what a bundle computes on this device with its proof: what PyTorch answered (`vtexport prove`).

Nothing is fetched and no PyTorch is needed. Each comparison passes, fails, or differs by no more than rounding explains;
the report is put into the bundle as reports/validate.json. Exit code 1 where one fails.

examples:
  vtexport validate mini
  vtexport validate mini --plan prunesid-64 --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vtexport.cli.console import Progress, command_line, counted, say, say_json, table, tell

if TYPE_CHECKING:
    from vtexport.validate import Check, Report

_STAGES = ("input", "op", "pipeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--plan",
        action="append",
        metavar="NAME",
        dest="plans",
        help="a plan; may be repeated; default: all that have a proof",
    )
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument(
        "--dialect", metavar="modern|classic", help="these variants of graphs alone; default: those that run here"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the report; default: reports/validate.json in the bundle"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Validates and says how it went."""
    from vtexport.validate import validate, write_report
    from vtexport.validate.validate import report_path

    progress = Progress(args.quiet)
    path = Path(args.output) if args.output else report_path(Path(args.bundle))
    report = validate(
        args.bundle,
        plans=args.plans,
        device=args.device,
        threads=args.threads,
        dialect=args.dialect,
        stage=progress.stage,
        command=command_line(),
    )
    for note in report.notes:
        tell(f"note: {note}")
    write_report(report, path)
    if args.json:
        say_json(msgspec.to_builtins(report))
    else:
        say_report(report)
        say(f"report: {path}")
    failed = report.failed
    if failed:
        plan, check = failed[0]
        what = f"{check.what} of {check.case}{f' of the plan {plan}' if plan else ''}"
        others = f" and {counted(len(failed) - 1, 'other check')}" if len(failed) > 1 else ""
        tell(
            f"vtexport: {what}{others} did not come out as in PyTorch on {report.backend} ({report.device}); {path} has "
            "every figure"
        )
        return 1
    return 0


def say_report(report: Report) -> None:
    """A table of the plans by stage, then everything that is not a pass."""
    say(f"{report.bundle_name} in {report.precision} on {report.backend} ({report.device}), {report.pruning_ops}")
    rows = [("inputs", _verdicts(report.inputs), "", "", "")]
    rows += [
        (
            plan.plan,
            *(_verdicts([each for each in plan.checks if each.stage == stage]) for stage in _STAGES),
            _tokens(plan.checks),
        )
        for plan in report.plans
    ]
    say(table(rows, ("plan", *_STAGES, "tokens")))
    others = [(plan, check) for plan, check in report.checks if check.verdict != "pass"]
    for plan, check in others:
        figures = f" {check.measured:.3g} (bound {check.bound:.3g})" if _has_figures(check) else ""
        note = f": {check.note}" if check.note else ""
        say(f"{check.verdict}: {f'{plan}, ' if plan else ''}{check.stage}, {check.case}, {check.what}{figures}{note}")
    for name, why in report.without_proof.items():
        say(f"not compared: {name}, {why}")


def _has_figures(check: Check) -> bool:
    return check.measured is not None and check.bound is not None


def _verdicts(checks: list[Check]) -> str:
    """`9 pass`, or `7 pass, 1 differs, 1 fail`."""
    counts = {verdict: sum(each.verdict == verdict for each in checks) for verdict in ("pass", "differs", "fail", "skipped")}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "-"


def _tokens(checks: list[Check]) -> str:
    """`64 of 64`: tokens that are PyTorch's, over the cases."""
    found = [each for each in checks if each.what == "tokens" and each.measured is not None and each.bound is not None]
    if not found:
        return "-"
    return f"{sum(each.measured or 0 for each in found):.0f} of {sum(each.bound or 0 for each in found):.0f}"
