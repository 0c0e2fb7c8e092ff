"""The page's sections: from sources to tables and figures. What is absent is said with the command that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vtexport.eval.report import Share
from vtexport.measure.record import STAGES, Figures, Header, Interval, PlanFigures, Soak
from vtexport.measure.record import Report as Measurement
from vtexport.report.budgets import Budget, budgets
from vtexport.report.collect import Source, Sources
from vtexport.report.figures import Point, axis, chart, legend, marks, number, stacked_bar
from vtexport.report.markup import Child, Html, escaped, join, listed, table, tag
from vtexport.report.pictures import draw_pictures
from vtexport.report.states import State, counts, states
from vtexport.validate.report import Check
from vtexport.validate.report import Report as Validation

_FEW = 100  # samples, below which p99 stands between the two largest


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    id: str
    title: str
    body: Html


def sections(sources: Sources) -> list[Section]:
    """All of them, in order; none is left out."""
    made = states(sources)
    by_source = {state.source: state for state in made}
    return [
        Section("summary", "Summary", _summary(made)),
        Section("stages", "Stages", _stages(sources, by_source["bench"])),
        Section("latency", "Latency", _latency(sources.bench, by_source["bench"])),
        Section("budgets", "Budgets", _budgets(sources)),
        Section("energy", "Memory and energy", _memory(sources.bench, by_source["bench"])),
        Section("soak", "Fixed rate", _soak(sources.soak, by_source["soak"])),
        Section("accuracy", "Accuracy", _accuracy(sources, by_source["eval"])),
        Section("kept", "Kept tokens", _kept(sources, by_source["proof"])),
        Section("parity", "Parity with PyTorch", _parity(sources.validate, by_source["validate"])),
    ]


def absent(state: State) -> Html:
    """A paragraph on a source that is not there, with the command."""
    return tag("p", f"Not checked: {state.detail}. ", tag("code", state.command), class_="absent")


def badge(state: str) -> Html:
    """One word in the colour that goes with it; the word alone says it, too."""
    return tag("span", state, class_=f"badge {state.replace(' ', '-')}")


def _summary(made: list[State]) -> Html:
    rows = [
        (
            each.source,
            badge(each.state),
            join((each.detail, tag("div", tag("code", each.command)) if _to_do(each) else None)),
        )
        for each in made
    ]
    return table(("source", "state", ""), rows, "state of every source")


def _to_do(state: State) -> bool:
    return state.state in {"not checked", "fail"}


def _stale(source: Source[Measurement] | Source[Validation]) -> Html | None:
    return tag("p", f"Of an earlier state: {source.stale}.", class_="absent") if source.stale else None


def _stages(sources: Sources, state: State) -> Html:
    source = sources.bench
    report = source.value
    if report is None or not report.plans:
        return absent(state)
    sums = {plan.name: sum(_medians(plan)) for plan in report.plans}
    whole = max(sums.values())
    bars = []
    for plan in report.plans:
        parts = list(zip(STAGES, _medians(plan), strict=True))
        label = f"{plan.name}: " + ", ".join(f"{name} {number(value)} ms" for name, value in parts)
        bars.append(_row(plan.name, f"{number(sums[plan.name])} ms", stacked_bar(parts, whole, label)))
    rows = [
        (plan.name, *(number(value) for value in _medians(plan)), f"{100 * plan.unattributed:.2f} %")
        for plan in report.plans
    ]
    known = {each.name for each in report.plans}
    missing = [name for name in sources.plan_names if name not in known]
    return join(
        (
            _stale(source),
            tag("p", _about(report.header)),
            legend(STAGES),
            *bars,
            axis(whole, "ms"),
            tag("p", "Medians of each stage; decode is of all tokens. A sum of medians is not the median of sums."),
            table(("plan", *STAGES, "unattributed"), rows, "medians of the stages in milliseconds"),
            tag("p", f"Not measured: {', '.join(missing)}.", class_="absent") if missing else None,
        )
    )


def _medians(plan: PlanFigures) -> list[float]:
    return [plan.stages_ms[stage].p50 if stage in plan.stages_ms else 0.0 for stage in STAGES]


def _about(header: Header) -> str:
    threads = "all cores" if header.threads is None else f"{header.threads} thread" + "s" * (header.threads != 1)
    images = f"{len(header.images)} {'synthetic ' if header.synthetic else ''}image" + "s" * (len(header.images) != 1)
    return (
        f"{header.machine.get('cpu', 'unknown processor')}, {header.device}, {threads}, {header.precision}; "
        f"{header.new_tokens} new tokens each, {header.prompt!r} about {images}."
    )


def _row(name: str, figure: str, drawing: Html) -> Html:
    return tag("div", tag("p", tag("span", name), tag("span", figure), class_="label"), drawing, class_="row")


def _latency(source: Source[Measurement], state: State) -> Html:
    report = source.value
    if report is None or not report.plans:
        return absent(state)
    parts: list[Html | None] = [_stale(source)]
    key = "Dot: median. Tick: p90. Diamond: p99. Line: from the least to the largest sample."
    parts.append(tag("p", key))
    for title, pick in _LATENCIES:
        whole = max(pick(plan).max for plan in report.plans)
        parts.append(tag("h3", title))
        parts += [
            _row(plan.name, f"{number(pick(plan).p50)} ms", marks(pick(plan), whole, f"{title} of {plan.name}"))
            for plan in report.plans
        ]
        parts.append(axis(whole, "ms"))
        rows = [
            (plan.name, str(each.samples), *map(number, (each.p50, each.p90, each.p95, each.p99, each.max)))
            for plan, each in ((plan, pick(plan)) for plan in report.plans)
        ]
        head = ("plan", "samples", "p50", "p90", "p95", "p99", "max")
        parts.append(table(head, rows, f"{title} in milliseconds"))
    fewest = min(plan.total_ms.samples for plan in report.plans)
    if fewest < _FEW:
        parts.append(tag("p", f"With {fewest} samples p99 is interpolated between the two largest.", class_="absent"))
    ratios = [
        (f"{each.plan} : {each.over}", _QUANTITIES[each.quantity], f"{each.ratio.value:.3f}", _interval(each.ratio))
        for each in report.ratios
    ]
    if ratios:
        parts.append(tag("h3", "Ratios of medians in the same turns"))
        parts.append(table(("", "of", "ratio", "95 % interval"), ratios, "ratios of medians"))
    if report.break_even is not None:
        parts.append(tag("p", report.break_even.sentence))
    return join(parts)


_LATENCIES: tuple[tuple[str, Callable[[PlanFigures], Figures]], ...] = (
    ("Time to first token", lambda plan: plan.first_token_ms),
    ("Whole answer", lambda plan: plan.total_ms),
)
_QUANTITIES = {"first_token_ms": "first token", "total_ms": "answer"}


def _interval(ratio: Interval) -> str:
    return " to ".join("unknown" if each is None else f"{each:.3f}" for each in (ratio.low, ratio.high))


def _budgets(sources: Sources) -> Html:
    found = budgets(sources)
    parts: list[Html] = []
    for each in found:
        parts.append(tag("h3", f"{each.title} by visual tokens"))
        if not any(each.series.values()):
            parts.append(_without(each))
            continue
        parts += [
            legend([name if points else None for name, points in each.series.items()]),
            chart(each.series, f"{each.title} by visual tokens"),
        ]
        rows = [
            (point.label, name, number(point.x), number(point.y))
            for name, points in each.series.items()
            for point in sorted(points, key=_by_tokens)
        ]
        head = ("plan", "method", "visual tokens", each.unit)
        parts.append(tag("details", tag("summary", "the points"), table(head, rows, each.title)))
    return join(parts)


def _by_tokens(point: Point) -> tuple[float, float]:
    return point.x, point.y


def _without(budget: Budget) -> Html:
    return tag("p", f"Not there: {budget.reason}. ", tag("code", budget.command), class_="absent")


def _memory(source: Source[Measurement], state: State) -> Html:
    report = source.value
    if report is None:
        return absent(state)
    again = tag("code", source.command)
    memory = [
        (each.plan, each.reason, "", "")
        if each.reason is not None
        else (each.plan, *map(_bytes, (each.loaded_rss_bytes, each.peak_rss_bytes, each.device_memory_bytes)))
        for each in report.memory
    ]
    parts: list[Html] = [tag("h3", "Memory of a process of its own")]
    parts.append(
        table(("plan", "opened", "peak", "device"), memory, "memory")
        if memory
        else tag("p", "Not measured. ", again, class_="absent")
    )
    parts.append(tag("h3", "Energy"))
    power = report.power
    if power is None or power.reason is not None:
        why = "Not measured. " if power is None else f"Not measured: {power.reason}. "
        parts.append(tag("p", why, tag("code", f"{source.command} --energy"), class_="absent"))
        return join(parts)
    energy = [
        (each.plan or "idle", each.what, *map(_known, (each.mean_w, each.joules_each, each.joules_each_above_idle)))
        if each.mean_w is not None
        else (each.plan or "idle", each.what, each.reason or "unknown", "", "")
        for each in report.energy
    ]
    parts.append(table(("plan", "of", "W", "J each", "J above idle"), energy, "energy"))
    parts.append(tag("p", f"{power.source}, rail {power.rail}."))
    return join(parts)


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"


def _known(value: float | None) -> str:
    return "unknown" if value is None else number(value)


def _soak(source: Source[Measurement], state: State) -> Html:
    report = source.value
    if report is None or report.soak is None:
        return absent(state)
    soak = report.soak
    rows: list[tuple[str, str]] = [
        ("asked", f"{soak.rate:g} a second"),
        ("achieved", f"{soak.achieved_rate:.3g} a second"),
        ("lasted", f"{soak.seconds:.1f} s"),
        *((name, str(value)) for name, value in _counts_of(soak)),
        ("median answer, first quarter", _ms(soak.first_quarter_ms)),
        ("median answer, last quarter", _ms(soak.last_quarter_ms)),
        ("drift", "unknown" if soak.drift is None else f"{100 * soak.drift:+.1f} %"),
        (
            "resident memory grows by",
            "unknown"
            if soak.rss_growth_bytes_per_hour is None
            else f"{soak.rss_growth_bytes_per_hour / 1e6:+.1f} MB an hour",
        ),
    ]
    return join((_stale(source), tag("p", badge(state.state)), table(("", ""), rows, "a run at a fixed rate")))


def _counts_of(soak: Soak) -> list[tuple[str, int]]:
    return [
        ("images that came", soak.due),
        ("answered", soak.answered),
        ("late", soak.missed),
        ("dropped", soak.dropped),
        ("errors", soak.errors),
    ]


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{number(value)} ms"


def _accuracy(sources: Sources, state: State) -> Html:
    report = sources.evaluation.value
    if report is None:
        return absent(state)
    rows = []
    for each in report.plans:
        whole = each.all_tasks
        retention = "" if whole.retention is None else _share(whole.retention)
        rows.append((each.plan, number(each.visual_tokens), _share(whole.accuracy), retention))
    stale = tag("p", f"Of another state: {sources.evaluation.stale}.", class_="absent")
    head = ("plan", "visual tokens", "accuracy (95 % interval)", "retention (95 % interval)")
    failed = [f"{each.plan}: {each.reason}" for each in report.failed]
    return join(
        (
            stale if sources.evaluation.stale else None,
            tag("p", f"{report.samples} questions about {report.images} images of {report.dataset}; mean over tasks."),
            table(head, rows, "accuracy"),
            listed(failed),
        )
    )


def _share(value: Share) -> str:
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _kept(sources: Sources, state: State) -> Html:
    found = sources.proof.value
    if found is None:
        return absent(state)
    made = draw_pictures(sources.bundle, found)
    shown = [
        tag(
            "figure",
            tag("img", src=each.uri, width=each.width, height=each.height, alt=f"{each.plan} on image {each.image}"),
            tag(
                "figcaption",
                tag("b", each.plan),
                f", image {each.image} ({each.origin}): {each.patches} of {each.places} patches kept",
                ", and CLS" if each.patches < each.kept else None,
                f". {each.prompt!r}",
            ),
        )
        for each in made.shown
    ]
    note = (
        "What PyTorch kept before the language model, bright and framed; the parity below says what this device keeps."
    )
    without = [f"{name}: {why}" for name, why in found.proof.without_proof.items()]
    return join((tag("p", note), tag("div", *shown, class_="pictures"), listed(made.left_out), listed(without)))


def _parity(source: Source[Validation], state: State) -> Html:
    report = source.value
    if report is None:
        return absent(state)
    rows: list[tuple[Child, ...]] = [("inputs", _verdicts(report.inputs), "", "")]
    rows += [
        (
            plan.plan,
            *(
                _verdicts([each for each in plan.checks if each.stage == stage])
                for stage in ("input", "op", "pipeline")
            ),
        )
        for plan in report.plans
    ]
    others = [
        tag(
            "li",
            badge(check.verdict),
            f" {f'{plan}, ' if plan else ''}{check.stage}, {check.case}, {check.what}",
            f": {check.measured:.3g} (bound {check.bound:.3g})"
            if check.measured is not None and check.bound is not None
            else None,
            f"; {check.note}" if check.note else None,
        )
        for plan, check in report.checks
        if check.verdict != "pass"
    ]
    without = [f"not compared: {name}, {why}" for name, why in report.without_proof.items()]
    about = f"On {report.backend} ({report.device}), {report.precision}, pruning ops: {report.pruning_ops}."
    return join(
        (
            _stale(source),
            tag("p", about),
            table(("plan", "input", "op", "pipeline"), rows, "comparisons with PyTorch"),
            tag("ul", *others) if others else None,
            listed(without),
        )
    )


def _verdicts(checks: list[Check]) -> Html:
    return escaped(counts([each.verdict for each in checks]))
