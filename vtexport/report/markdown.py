"""The short form for a pull request: a table of the plans and a line a source, in Markdown."""

from __future__ import annotations

import re

from vtexport.errors import printable
from vtexport.measure.answer import AGAINST
from vtexport.report.budgets import accuracy, energy
from vtexport.report.collect import Sources
from vtexport.report.figures import number
from vtexport.report.states import counts, states

_HEADER = ("plan", "visual tokens", "first token p50", "p99", "answer p50", "J an answer", "accuracy", "as PyTorch")
_ABSENT = "-"


def markdown(sources: Sources) -> str:
    """The table and the lines; "-" stands for what was not measured."""
    bench, checked, asked = sources.bench.value, sources.validate.value, sources.evaluation.value
    figures = {plan.name: plan for plan in bench.plans if not plan.name.startswith(AGAINST)} if bench else {}
    joules = {point.label: point.y for _, point in energy(bench)} if bench else {}
    right = {point.label: point.y for _, point in accuracy(asked)} if asked else {}
    tokens = {point.label: point.x for _, point in accuracy(asked)} if asked else {}
    parity = {each.plan: counts([check.verdict for check in each.checks]) for each in checked.plans} if checked else {}
    manifest = sources.bundle.manifest
    rows = []
    for name in sources.plan_names:
        plan = figures.get(name)
        times = (plan.first_token_ms.p50, plan.first_token_ms.p99, plan.total_ms.p50) if plan else ()
        rows.append(
            (
                name,
                _shown(plan.visual_tokens if plan else tokens.get(name), ""),
                *((f"{number(value)} ms" for value in times) if times else [_ABSENT] * 3),
                _shown(joules.get(name), " J"),
                _shown(right.get(name), " %"),
                parity.get(name, _ABSENT),
            )
        )
    lines = [f"**{_escaped(manifest.name)}**", "", _line(_HEADER), _line(["---"] * len(_HEADER)), *map(_line, rows), ""]
    for state in states(sources):
        more = f" ({_code(state.command)})" if state.state == "not checked" else ""
        lines.append(f"- {state.source}: **{state.state}**, {_escaped(state.detail)}{more}")
    if bench is not None:
        header = bench.header
        threads = "all cores" if header.threads is None else f"threads: {header.threads}"
        machine = f"{header.machine.get('cpu', 'unknown')}, {header.device}, {threads}, {header.precision}"
        lines.append(f"- measured on {_escaped(machine)}; {header.new_tokens} new tokens an answer")
    return "\n".join(lines)


def _shown(value: float | None, unit: str) -> str:
    return _ABSENT if value is None else number(value) + unit


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Text that Markdown takes for nothing but text: no markup, HTML, mention or new cell."""
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", plain)


def _code(text: str) -> str:
    """A span of code whose fence is longer than any run of backticks in it."""
    plain = printable(text).replace("|", "&#124;")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if "`" in plain else ""
    return f"{fence}{space}{plain}{space}{fence}"
