"""The last sections of a page: machines, versions, warnings, and the commands that were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtexport.measure.record import Report as Measurement
from vtexport.report.collect import Sources
from vtexport.report.figures import number
from vtexport.report.markup import Html, join, listed, table, tag
from vtexport.report.sections import Section

_MOST = 50  # warnings of a kind


def closing(sources: Sources) -> list[Section]:
    """Environment, warnings, bundle, command lines."""
    return [
        Section("environment", "Environment", _environment(sources)),
        Section("warnings", "Warnings", _warnings(sources)),
        Section("bundle", "Bundle", _bundle(sources)),
        Section("commands", "Command lines", _commands(sources)),
    ]


def _environment(sources: Sources) -> Html:
    columns: dict[str, dict[str, str]] = {}
    for source in (sources.bench, sources.soak):
        if source.value is not None:
            columns[source.name] = _of_measurement(source.value)
    checked = sources.validate.value
    if checked is not None:
        of = {"created at": checked.created_at, "device": checked.device, "backend": checked.backend}
        threads = {"threads": _threads(checked.threads)}
        columns["validate"] = of | threads | _flat(checked.machine) | _flat(checked.versions)
    asked = sources.evaluation.value
    if asked is not None:
        columns["eval"] = {"created at": asked.created_at} | _flat(asked.machine) | _flat(asked.settings)
    if sources.proof.value is not None:
        for name, plan in sources.proof.value.proof.plans.items():
            columns[f"proof of {name}"] = {"created at": plan.created_at} | _flat(plan.versions)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [(name, *(column.get(name, "") for column in columns.values())) for name in names]
    return join(
        (table(("", *columns), rows, "machine and versions of each source"), _states(sources.bench.value, "bench"))
    )


def _of_measurement(report: Measurement) -> dict[str, str]:
    header = report.header
    found = {"created at": header.created_at, "device": header.device, "threads": _threads(header.threads)}
    for each in report.calibrations:
        speed = f"{number(each.gemm_gflops)} GFLOP/s, {number(each.copy_gb_per_s)} GB/s"
        found[f"its speed {each.when} it"] = speed
    return found | {"precision": header.precision} | _flat(header.machine) | _flat(header.versions)


def _threads(count: int | None) -> str:
    return "all cores" if count is None else str(count)


def _states(report: Measurement | None, name: str) -> Html | None:
    """The machine before and after a measurement, as far as it is known."""
    ends = {each.when: each.state for each in report.states if each.when != "during"} if report else {}
    known = {
        when: _flat({key: value for key, value in state.items() if key != "unknown"}) for when, state in ends.items()
    }
    names = list(dict.fromkeys(each for state in known.values() for each in state))
    if not names:
        return None
    rows = [(each, *(state.get(each, "") for state in known.values())) for each in names]
    body = table(("", *known), rows, f"the machine's state around {name}")
    return tag("details", tag("summary", f"the machine's state before and after {name}"), body)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Values by name as text, those of inner objects under "outer.inner"; what is null or empty is left out."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            found |= (
                {name: ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)}
                if value
                else {}
            )
        elif value is not None:
            found[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return found


def _warnings(sources: Sources) -> Html:
    said: list[str] = []
    for source in (sources.bench, sources.soak):
        if source.value is not None:
            failures = [f"{each.image}: {each.reason}" for each in source.value.failures]
            said += [f"{source.name}: {each}" for each in (*source.value.warnings, *source.value.notes, *failures)]
    if sources.validate.value is not None:
        said += [f"validate: {each}" for each in sources.validate.value.notes]
    if sources.evaluation.value is not None:
        said += [f"eval: line {each.get('line')}: {each.get('reason')}" for each in sources.evaluation.value.bad_lines]
    said += [f"build: {each}" for each in sources.bundle.manifest.notes]
    if len(said) > _MOST:
        said[_MOST:] = [f"and {len(said) - _MOST} more in the reports"]
    return listed(said) or tag("p", "The reports that are there have none.")


def _bundle(sources: Sources) -> Html:
    manifest = sources.bundle.manifest
    facts = [
        ("name", manifest.name),
        ("from", manifest.source.requested),
        ("precision", manifest.precision),
        ("created at", manifest.created_at),
        ("manifest's SHA-256", sources.manifest_sha256),
    ]
    plans = [
        (
            plan.name,
            plan.method,
            str(plan.keep),
            str(plan.visual_tokens),
            ", ".join(f"{k}={v}" for k, v in plan.parameters.items()),
        )
        for plan in manifest.plans
    ]
    plans += [(plan.name, "adaptive", "", "", "") for plan in manifest.adaptive_plans]
    head = ("plan", "method", "budget", "rows that enter", "parameters")
    return join((table(("", ""), facts, "the bundle"), table(head, plans, "plans of the bundle")))


def _commands(sources: Sources) -> Html:
    built = sources.bundle.manifest.command  # "" where a program built the bundle
    given = [("build", built)] if built else []
    for source in (sources.bench, sources.soak):
        given += [(source.name, source.value.header.command)] if source.value is not None else []
    given += [("validate", sources.validate.value.command)] if sources.validate.value is not None else []
    given += [("eval", sources.evaluation.value.command)] if sources.evaluation.value is not None else []
    if sources.proof.value is not None:
        commands = dict.fromkeys(plan.command for plan in sources.proof.value.proof.plans.values())
        given += [("proof", command) for command in commands]
    return table(("", "command"), [(name, tag("code", command)) for name, command in given], "commands")
