"""One word for each source: pass, fail, measured, or not checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

from vtexport.bundle.proof import FoundProof
from vtexport.eval.report import Report as Evaluation
from vtexport.measure.record import Gate
from vtexport.measure.record import Report as Measurement
from vtexport.report.collect import Source, Sources, Value
from vtexport.validate.report import Report as Validation

# "measured": there are figures, and nothing in them that a limit was set for
Word = Literal["pass", "fail", "measured", "not checked"]


class State(msgspec.Struct, kw_only=True):
    """The word for a source, and the sentence that goes with it."""

    source: str
    state: Word
    detail: str
    command: str  # that made it, or makes it


def states(sources: Sources) -> list[State]:
    """One for each source, in the page's order; what is absent is never a pass."""
    return [
        _state(sources.validate, _validation),
        _state(sources.bench, _measurement),
        _state(sources.soak, _soak),
        _state(sources.evaluation, _evaluation),
        _state(sources.proof, _proof),
    ]


def counts(verdicts: list[str]) -> str:
    """`9 pass, 1 differs`; "-" of none."""
    found = Counter(verdicts)
    return ", ".join(f"{found[each]} {each}" for each in ("pass", "differs", "fail", "skipped") if found[each]) or "-"


def _state(source: Source[Value], judge: Callable[[Value], tuple[Word, str]]) -> State:
    if source.value is None:
        detail = f"cannot be used: {source.problem}" if source.problem else f"{source.path.name} is not there"
        return State(source=source.name, state="not checked", detail=detail, command=source.command)
    word, detail = judge(source.value)
    if source.stale:
        word, detail = "not checked", f"{source.stale}; then: {detail}"
    return State(source=source.name, state=word, detail=detail, command=source.command)


def _validation(report: Validation) -> tuple[Word, str]:
    verdicts = [check.verdict for _, check in report.checks]
    detail = f"{counts([*verdicts])} on {report.backend} ({report.device})"
    if report.without_proof:
        detail += f"; not compared: {', '.join(report.without_proof)}"
    if report.failed:
        return "fail", detail
    return ("pass" if report.plans and "pass" in verdicts else "not checked"), detail


def _measurement(report: Measurement) -> tuple[Word, str]:
    answers = sum(plan.total_ms.samples for plan in report.plans)
    detail = f"{_counted(len(report.plans), 'plan')}, {_counted(answers, 'answer')}"
    wrong = _wrong(report)
    if wrong:
        return "fail", f"{detail}; {wrong}"
    if not answers:
        return "not checked", detail
    noisy = "; the machine was not quiet" if report.quiet is False else ""
    word, judged = _gate(report.gate)
    return word, detail + noisy + judged


def _gate(gate: Gate | None) -> tuple[Word, str]:
    """The word for a measurement's limits, and what goes behind its figures."""
    if gate is None:
        return "measured", ""
    sentences = "; ".join([*gate.failed, *gate.unknown])
    if sentences:
        return ("fail" if gate.failed else "not checked"), f"; {sentences}"
    kept = [f"{name} {value:g}" for name, value in gate.limits.items()]
    kept += [f"not slower than {gate.against} by {100 * (gate.tolerance or 0):g} %"] if gate.against else []
    return "pass", f"; held to {', '.join(kept)}"


def _soak(report: Measurement) -> tuple[Word, str]:
    soak = report.soak
    if soak is None:
        return "not checked", f"a {report.header.mode} without figures of a fixed rate"
    detail = (
        f"{soak.rate:g} a second for {soak.seconds:.1f} s: {soak.answered} of {soak.due} answered, {soak.missed} late, "
        f"{soak.dropped} dropped, {_counted(soak.errors, 'error')}"
    )
    wrong = _wrong(report)
    if wrong or soak.missed or soak.dropped or soak.errors:
        return "fail", f"{detail}; {wrong}" if wrong else detail
    return ("pass" if soak.answered else "not checked"), detail


def _wrong(report: Measurement) -> str:
    found = [f"ended early by {report.interrupted}"] if report.interrupted is not None else []
    found += [f"{_counted(len(report.failures), 'image')} could not be answered about"] if report.failures else []
    return ", ".join(found)


def _evaluation(report: Evaluation) -> tuple[Word, str]:
    detail = f"{_counted(len(report.plans), 'plan')}, {_counted(report.samples, 'question')} of {report.dataset}"
    wrong = [f"{each.plan} could not be asked ({each.reason})" for each in report.failed]
    wrong += [f"{_counted(len(report.bad_lines), 'line')} could not be used"] if report.bad_lines else []
    if wrong:
        return "fail", f"{detail}; {', '.join(wrong)}"
    return ("measured" if report.plans and report.samples else "not checked"), detail


def _proof(found: FoundProof) -> tuple[Word, str]:
    """A proof is what PyTorch answered; whether this bundle does the same is the validation's to say."""
    proof = found.proof
    detail = f"{_counted(len(proof.plans), 'plan')}, {_counted(len(proof.cases), 'case')}; every file has its hash"
    if proof.without_proof:
        detail += f"; none of {', '.join(proof.without_proof)}"
    return "measured", detail


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
