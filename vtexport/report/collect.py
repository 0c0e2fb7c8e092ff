"""Sources of a page in a bundle: each one read, or the reason why not and the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.proof import FOLDER as PROOF_FOLDER
from vtexport.bundle.proof import PROOF_NAME, FoundProof, command_for, read_proof
from vtexport.bundle.reader import Bundle
from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded
from vtexport.errors import InputError, VtexportError, quoted
from vtexport.eval.report import Report as Evaluation
from vtexport.measure.record import BENCH_NAME, FOLDER, SOAK_NAME
from vtexport.measure.record import Report as Measurement
from vtexport.measure.record import read_report as read_measurement
from vtexport.validate.report import NAME as VALIDATE_NAME
from vtexport.validate.report import Report as Validation
from vtexport.validate.report import read_report as read_validation

EVAL_NAME = "eval.json"
PAGE_NAME = "report.html"
_MAX_EVALUATION_BYTES = 2**30

Value = TypeVar("Value")


@dataclass(frozen=True)
class Source(Generic[Value]):
    """One file that a page is made of."""

    name: str  # "bench", "validate", ...
    path: Path
    command: str  # that makes it
    value: Value | None = None
    problem: str | None = None  # why a file that is there cannot be used
    stale: str | None = None  # why what was read is not about the bundle as it is now


@dataclass(frozen=True)
class Sources:
    """All that a page is made of."""

    bundle: Bundle
    manifest_sha256: str
    bench: Source[Measurement]
    validate: Source[Validation]
    evaluation: Source[Evaluation]
    soak: Source[Measurement]
    proof: Source[FoundProof]

    @property
    def plan_names(self) -> list[str]:
        """The bundle's plans, adaptive ones last."""
        manifest = self.bundle.manifest
        return [*(plan.name for plan in manifest.plans), *(plan.name for plan in manifest.adaptive_plans)]

    @property
    def reports(
        self,
    ) -> tuple[Source[Measurement], Source[Validation], Source[Evaluation], Source[Measurement]]:
        """Those that say how the bundle does; the proof alone says nothing about it."""
        return self.bench, self.validate, self.evaluation, self.soak


def collect(bundle: Bundle, evaluation: Path | None = None) -> Sources:
    """Reads every source of a bundle.

    Args:
        bundle: the page's.
        evaluation: the result of `vtexport eval` or `sweep`, where it is not reports/eval.json in the bundle.

    Raises:
        InputError: there is no report that can be used, or `evaluation` is none.
    """
    folder = bundle.folder
    digest = hash_file(folder / MANIFEST_NAME)
    shown = shlex.quote(str(folder))
    # A file that somebody names has to be one; one that may lie in the bundle need not.
    given = None if evaluation is None else read_evaluation(evaluation)
    reports = folder / FOLDER
    asked = shlex.quote(f"{folder.resolve().name}-eval")
    asking = f"vtexport eval {shown} -o {asked} && vtexport report {shown} --eval {asked}/{EVAL_NAME}"
    found = Sources(
        bundle=bundle,
        manifest_sha256=digest,
        bench=_source("bench", reports / BENCH_NAME, f"vtexport bench {shown}", read_measurement),
        validate=_source("validate", reports / VALIDATE_NAME, f"vtexport validate {shown}", read_validation),
        evaluation=_source("eval", reports / EVAL_NAME, asking, read_evaluation)
        if evaluation is None
        else Source("eval", evaluation, asking, given),
        soak=_source(
            "soak",
            reports / SOAK_NAME,
            f"vtexport bench {shown} --plan NAME --rate 1/s --duration 10m",
            read_measurement,
        ),
        proof=_source(
            "proof",
            folder / PROOF_FOLDER / PROOF_NAME,
            command_for(folder, bundle.manifest),
            lambda path: read_proof(folder, bundle.manifest),
        ),
    )
    found = _with_staleness(found)
    if all(source.value is None for source in found.reports):
        broken = next((source.problem for source in found.reports if source.problem), None)
        why = f"no report that can be used: {broken}" if broken else f"no report in {FOLDER}/"
        raise InputError(f"{folder} has {why}; make one with `vtexport bench {shown}` or `vtexport validate {shown}`")
    return found


def read_evaluation(path: Path) -> Evaluation:
    """The result of `vtexport eval` or `vtexport sweep` in a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    again = "give the eval.json or sweep.json that `vtexport eval` or `vtexport sweep` wrote"
    try:
        return decode_json(read_bounded(path, _MAX_EVALUATION_BYTES), Evaluation)
    except UnreadableError as error:
        raise InputError(f"{path} is no result of an evaluation ({quoted(error, path)}); {again}") from error


def _source(name: str, path: Path, command: str, read: Callable[[Path], Value | None]) -> Source[Value]:
    """A file that may be absent; one that is there and cannot be used is told of, and the others are still shown."""
    if not path.is_symlink() and not path.exists():
        return Source(name, path, command)
    try:
        return Source(name, path, command, read(path))
    except VtexportError as error:
        return Source(name, path, command, problem=str(error))


def _with_staleness(found: Sources) -> Sources:
    """The sources, each with the reason why it is about another state of the bundle, where it is."""
    changed = f"the bundle's {MANIFEST_NAME} has changed since; run the command again"

    def of_manifest(source: Source[Value], digest: str | None) -> Source[Value]:
        return source if digest in {None, found.manifest_sha256} else _stale(source, changed)

    bench, soak, validate, asked = found.bench, found.soak, found.validate, found.evaluation
    files = found.bundle.manifest.source.files
    if asked.value is not None and asked.value.source.get("files") != files:
        asked = _stale(asked, "it asked a bundle of other weights or another tokenizer")
    return Sources(
        bundle=found.bundle,
        manifest_sha256=found.manifest_sha256,
        bench=of_manifest(bench, bench.value.header.manifest_sha256 if bench.value else None),
        validate=of_manifest(validate, validate.value.manifest_sha256 if validate.value else None),
        evaluation=asked,
        soak=of_manifest(soak, soak.value.header.manifest_sha256 if soak.value else None),
        proof=found.proof,
    )


def _stale(source: Source[Value], why: str) -> Source[Value]:
    return Source(source.name, source.path, source.command, source.value, source.problem, why)
