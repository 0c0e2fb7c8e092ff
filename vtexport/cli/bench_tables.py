"""Tables and sentences of a measurement's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vtexport.cli.console import counted, say, size, table
from vtexport.measure.answer import AGAINST
from vtexport.measure.gate import Verdict
from vtexport.measure.record import STAGES, PlanFigures, Report
from vtexport.measure.report import UNPRUNED, vision_sentence


def summary(report: Report, verdict: Verdict, path: Path) -> dict[str, Any]:
    """The report without its single samples and states, with the verdict and where the whole stands."""
    whole: dict[str, Any] = msgspec.to_builtins(report)
    del whole["samples"], whole["states"]
    gate = {"failed": verdict.failed, "unknown": verdict.unknown, "exit_code": verdict.exit_code}
    return whole | {"gate": gate, "report": str(path)}


def say_report(report: Report) -> None:
    """The figures for people."""
    header, machine = report.header, report.header.machine
    threads = counted(header.threads, "thread") if header.threads else "all cores"
    cores = counted(machine["cores"], "core")
    say(f"{header.bundle} ({header.precision}) on {machine['cpu']}, {cores}, {header.device}, {threads}")
    kinds = "synthetic picture" if header.synthetic else "image"
    say(
        f"{header.new_tokens} new tokens each, {header.prompt!r} about {counted(len(header.images), kinds)}; "
        f"pruning ops: {machine['pruning_ops']}"
    )
    if report.plans:
        _times(report)
        _stages(report)
    _ratios(report)
    _memory(report)
    _energy(report)
    _sentences(report)


def _times(report: Report) -> None:
    header = (
        "plan",
        "tokens",
        "prompt",
        "answers",
        "first token",
        "p95",
        "p99",
        "jitter",
        "answer",
        "p95",
        "p99",
        "tok/s",
    )
    say("\n" + table([_time_row(plan) for plan in report.plans], header))
    say("milliseconds; medians where no percentile is named; jitter is p99 - p50")


def _time_row(plan: PlanFigures) -> tuple[str, ...]:
    first, total = plan.first_token_ms, plan.total_ms
    return (
        plan.name,
        f"{plan.visual_tokens:.0f}",
        f"{plan.prompt_tokens:.0f}",
        f"{total.samples}",
        *(f"{value:.1f}" for value in (first.p50, first.p95, first.p99, first.jitter, total.p50, total.p95, total.p99)),
        "" if plan.tokens_per_s is None else f"{plan.tokens_per_s:.1f}",
    )


def _stages(report: Report) -> None:
    rows = []
    for plan in report.plans:
        token = "" if plan.decode_token_ms is None else f"{plan.decode_token_ms.p50:.2f}"
        stages = [f"{plan.stages_ms[stage].p50:.2f}" for stage in STAGES]
        rows.append((plan.name, *stages, token, f"{100 * plan.unattributed:.2f} %"))
    say("\n" + table(rows, ("stages", *STAGES, "a token", "unattributed")))


def _ratios(report: Report) -> None:
    rows = []
    for ratio in report.ratios:
        low, high = ("" if each is None else f"{each:.3f}" for each in (ratio.ratio.low, ratio.ratio.high))
        over = "the other bundle's" if ratio.over.startswith(AGAINST) else ratio.over
        what = "first token" if ratio.quantity == "first_token_ms" else "answer"
        halves = f"{ratio.first_half:.3f}, {ratio.second_half:.3f}"
        rows.append((f"{ratio.plan} : {over}", what, f"{ratio.ratio.value:.3f}", f"{low} to {high}", halves))
    if rows:
        say("\n" + table(rows, ("ratio of medians", "of", "", "95 % interval", "in each half")))


def _memory(report: Report) -> None:
    rows: list[tuple[str, ...]] = []
    for each in report.memory:
        if each.reason is not None:
            rows.append((each.plan, each.reason))
            continue
        known = (each.loaded_rss_bytes, each.peak_rss_bytes, each.device_memory_bytes)
        sizes = ("unknown" if value is None else size(value) for value in known)
        rows.append((each.plan, *sizes, f"{each.open_s or 0:.1f} s", f"{each.first_answer_ms or 0:.0f} ms"))
    if rows:
        header = ("a process of its own", "opened", "peak", "device", "to open", "first answer")
        say("\n" + table([row + ("",) * (len(header) - len(row)) for row in rows], header))


def _energy(report: Report) -> None:
    power = report.power
    if power is None:
        return
    if power.reason is not None:
        say(f"\nenergy: unknown ({power.reason})")
        return
    rows: list[tuple[str, ...]] = []
    for each in report.energy:
        if each.mean_w is None:
            rows.append((each.plan or "", each.what, each.reason or "", "", "", ""))
            continue
        joules = ("" if of is None else f"{of:.4g}" for of in (each.joules_each, each.joules_each_above_idle))
        rows.append(
            (each.plan or "", each.what, f"{each.mean_w:.2f}", *joules, f"{each.count} in {each.seconds:.1f} s")
        )
    say("\n" + table(rows, ("energy", "of", "W", "J each", "above idle", "repeated")))
    say(f"{power.source}, rail {power.rail}, read every {power.period_s:g} s")


def _sentences(report: Report) -> None:
    said = []
    if report.break_even is not None:
        said.append(report.break_even.sentence)
    methods = {plan.name: plan.method for plan in report.header.plans}
    unpruned = [plan for plan in report.plans if methods[plan.name] == UNPRUNED and not plan.name.startswith(AGAINST)]
    said += [vision_sentence(plan) for plan in (unpruned or report.plans[:1])]
    for each in report.calibrations:
        said.append(
            f"the machine {each.when} the measurement: {each.gemm_gflops:.1f} GFLOP/s in matrix products, "
            f"{each.copy_gb_per_s:.1f} GB/s in copies, {counted(each.threads, 'thread')}"
        )
    soak = report.soak
    if soak is not None:
        said.append(
            f"{soak.rate:g} a second for {soak.seconds:.1f} s: {soak.answered} of {soak.due} answered "
            f"({soak.achieved_rate:.3g} a second), {soak.missed} late, {soak.dropped} dropped, "
            f"{counted(soak.errors, 'error')}"
        )
        if soak.drift is not None:
            said.append(
                f"median answer {soak.first_quarter_ms:.1f} ms in the first quarter, {soak.last_quarter_ms:.1f} ms in "
                f"the last ({100 * soak.drift:+.1f} %)"
            )
        if soak.rss_growth_bytes_per_hour is not None and soak.rss_last_bytes is not None:
            said.append(
                f"resident memory {size(soak.rss_last_bytes)}, {soak.rss_growth_bytes_per_hour / 1e6:+.1f} MB an hour"
            )
    said += report.notes
    if said:
        say()
    for sentence in said:
        say(sentence)
