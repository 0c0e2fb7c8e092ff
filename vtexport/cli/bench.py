"""Measure a bundle on this machine: stages, first token and whole answer of each plan, by turns, with percentiles.

Answers have a fixed length. Memory of each plan is that of a process of its own; the machine's own speed and state are
recorded beside the times. The report with every sample goes into BUNDLE/reports/bench.json; docs/measuring.md defines
every figure. With limits (--max-..., --against) the exit code is 1 where one does not hold, with a sentence that says
by how much, and 3 where it could not be judged. With --rate it answers at a fixed rate for long (reports/soak.json).
Ctrl-C ends it and keeps what was measured.

examples:
  vtexport bench mini
  vtexport bench llava --plan none,prunesid-64 --image photos/ --prompt "Is the way free?" --samples 100
  vtexport bench llava --keep 192,128,64
  vtexport bench llava --plan prunesid-64 --max-ttft-ms 150 --percentile 99 --against old.json --tolerance 5%
  vtexport bench llava --plan prunesid-64 --rate 2/s --duration 1h --image photos/
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.build import budgets
from vtexport.cli.console import Progress, command_line, say, say_json, tell, typed_text
from vtexport.cli.explain import INTERRUPTED
from vtexport.cli.quantities import duration, rate, share
from vtexport.cli.run import add_logits_processors_argument
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.measure.answer import Contender
    from vtexport.measure.bench import Request
    from vtexport.measure.gate import Limits, Verdict
    from vtexport.measure.record import Report

_TOLERANCE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--plan",
        action="append",
        type=lambda text: text.split(","),
        metavar="NAME[,NAME...]",
        help="plans to measure; default: every plan",
    )
    parser.add_argument(
        "--keep", type=budgets, metavar="N[,N...]", help="plans with these budgets and the unpruned one, for break-even"
    )
    parser.add_argument("--method", metavar="NAME", help="of the plans of --keep, where several methods have them")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE|FOLDER",
        help="images to ask about in turn; default: synthetic pictures, made from the seed",
    )
    parser.add_argument(
        "--prompt", type=typed_text, default="What is in the image?", metavar="TEXT", help="the question"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="tokens of every answer; default: %(default)s"
    )
    add_logits_processors_argument(parser)
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    how = parser.add_argument_group("how much")
    how.add_argument("--samples", type=int, metavar="N", help="answers of each plan; default: 50")
    how.add_argument("--duration", type=duration, metavar="TIME", help="instead: for so long, such as 30s or 1h")
    how.add_argument("--rate", type=rate, metavar="N/s", help="a soak: answer one plan's images at this rate")
    how.add_argument(
        "--warm-up", type=int, default=3, metavar="N", help="answers before the first sample; default: %(default)s"
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the turns' order; default: %(default)s")
    how.add_argument("--one-at-a-time", action="store_true", help="one plan in memory at a time, opened for its turns")
    how.add_argument("--no-memory", action="store_true", help="do not measure each plan's memory in its own process")
    how.add_argument("--energy", action="store_true", help="joules of an answer and of each stage, repeated alone")
    how.add_argument("--rail", metavar="NAME", help="the power rail to integrate; default: the machine's whole input")
    gate = parser.add_argument_group("limits")
    gate.add_argument("--max-ttft-ms", type=float, metavar="MS", help="time to first token")
    gate.add_argument("--max-total-ms", type=float, metavar="MS", help="time of the whole answer")
    gate.add_argument(
        "--percentile", type=float, default=50.0, metavar="P", help="that these two are for; default: %(default)g"
    )
    gate.add_argument("--max-memory-mb", type=float, metavar="MB", help="peak resident memory, 10^6 bytes")
    gate.add_argument("--max-energy-j", type=float, metavar="J", help="energy of an answer")
    gate.add_argument(
        "--against",
        metavar="FILE|BUNDLE",
        help="a report, or a bundle that is measured in the same turns: no plan may be slower than there",
    )
    gate.add_argument("--tolerance", type=share, metavar="SHARE", help="by which it may be slower; default: 5%%")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the report; default: reports/bench.json or soak.json in the bundle"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, without the single samples")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Measures, shows, and holds to the limits."""
    from vtexport.cli.bench_tables import say_report, summary
    from vtexport.cli.stopping import asked_to_stop
    from vtexport.measure.bench import STOPPED, Hooks
    from vtexport.measure.gate import percentile_note
    from vtexport.measure.record import read_report
    from vtexport.measure.session import keep, measure, report_path

    limits = _limits(args)
    bundle = open_bundle(args.bundle)
    # What would be refused after the work is refused before it.
    other = open_bundle(args.against) if args.against and Path(args.against).is_dir() else None
    earlier = read_report(args.against) if args.against and other is None else None
    request = _request(args, bundle, other, limits)
    path = report_path(bundle, request, args.output)
    progress = Progress(args.quiet)
    for failure in request.pictures.failures:
        tell(f"{failure.image} is left out: {failure.reason}")
    total = (request.samples or 0) * len(request.contenders)
    if request.rate is not None and request.seconds is not None:
        total = int(request.rate * request.seconds)
    answered = 0

    def done(count: int) -> None:
        nonlocal answered
        answered += count
        show(count)

    with asked_to_stop(lambda: answered > 0) as stop, progress.items_done("measured", total, "answers") as show:
        report = measure(bundle, request, path, command_line(), Hooks(progress.stage, done, stop))
    verdict = _judge(args, report, limits, earlier)
    if report.gate is not None:
        keep(path, report)
    if args.json:
        say_json(summary(report, verdict, path))
    else:
        say_report(report)
        say(f"\n{path}")
    few = percentile_note(limits, [plan.total_ms.samples for plan in report.plans])
    for warning in [*report.warnings, *([few] if few else [])]:
        tell(f"warning: {warning}")
    failures = len(report.failures)
    if failures:
        tell(f"warning: {failures} of the images could not be answered about; the report names them")
    for sentence in (*verdict.failed, *verdict.unknown):
        tell(f"vtexport: {sentence}")
    if report.interrupted is not None:
        tell(f"vtexport: ended early by {report.interrupted}; what was measured until then is in {path}")
        return INTERRUPTED if report.interrupted == STOPPED else verdict.exit_code or 1
    return verdict.exit_code


def _limits(args: argparse.Namespace) -> Limits:
    from vtexport.measure.gate import Limits

    limits = Limits(args.max_ttft_ms, args.max_total_ms, args.max_memory_mb, args.max_energy_j, args.percentile)
    limits.check()
    if args.tolerance is not None and not args.against:
        raise UsageError("--tolerance is for --against; give a report or a bundle with it")
    if limits.max_memory_mb is not None and args.no_memory:
        raise UsageError("--max-memory-mb takes the memory that --no-memory leaves out; give one of them")
    if args.rail is not None and not args.energy and limits.max_energy_j is None:
        raise UsageError("--rail is for --energy or --max-energy-j; give one with it")
    return limits


def _request(args: argparse.Namespace, bundle: Bundle, other: Bundle | None, limits: Limits) -> Request:
    from vtexport.measure.answer import Settings
    from vtexport.measure.bench import SAMPLES, Request
    from vtexport.measure.pictures import pictures

    if args.samples is not None and args.duration is not None:
        raise UsageError("--samples and --duration exclude each other; give one of them")
    if args.rate is not None and (args.duration is None or args.one_at_a_time or args.against):
        raise UsageError("--rate takes --duration, and neither --against nor --one-at-a-time")
    contenders = _contenders(args, bundle, other)
    if args.rate is not None and len(contenders) > 1:
        names = ", ".join(each.name for each in contenders)
        raise UsageError(f"--rate takes one plan; choose one with --plan: {names}")
    energy = limits.max_energy_j is not None
    request = Request(
        contenders,
        Settings(args.prompt, args.new_tokens, args.device, args.threads, args.logits_processors),
        pictures(args.image, args.seed),
        samples=SAMPLES if args.samples is None else args.samples,
        seconds=args.duration,
        warm_up=args.warm_up,
        seed=args.seed,
        one_at_a_time=args.one_at_a_time,
        memory=not args.no_memory,
        energy="stages" if args.energy else "answers" if energy else "nothing",
        rail=args.rail,
        rate=args.rate,
    )
    request.check()
    return request


def _contenders(args: argparse.Namespace, bundle: Bundle, other: Bundle | None) -> list[Contender]:
    from vtexport.measure.answer import Contender
    from vtexport.measure.selection import contenders

    named = [name for names in args.plan or () for name in names]
    found = contenders(bundle, named, args.keep or (), args.method)
    if other is None:
        return found
    there = {plan.name for plan in other.manifest.plans} | {plan.name for plan in other.manifest.adaptive_plans}
    both = [each.plan for each in found if each.plan in there]
    if not both:
        raise UsageError(
            f"{other.folder} has none of the plans {', '.join(each.plan for each in found)}; choose a plan of both "
            "bundles with --plan"
        )
    return [*found, *(Contender(other, name, against=True) for name in both)]


def _judge(args: argparse.Namespace, report: Report, limits: Limits, earlier: Report | None) -> Verdict:
    from vtexport.measure.gate import check_comparable, judge, judge_against

    verdict = judge(report, limits)
    if args.against:
        if earlier is not None:
            report.warnings += check_comparable(report, earlier, args.against)
        tolerance = _TOLERANCE if args.tolerance is None else args.tolerance
        verdict.failed += judge_against(report, earlier, tolerance, args.against).failed
        report.gate = verdict.gate(limits, args.against, tolerance)
    else:
        report.gate = verdict.gate(limits)
    return verdict
