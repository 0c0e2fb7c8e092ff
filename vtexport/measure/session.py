"""A measurement from a request to the report on the disk, as a recipe to read."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.reader import Bundle
from vtexport.errors import InputError, printable
from vtexport.measure.bench import STOPPED, Bench, Hooks, Request, fits, measure_memory
from vtexport.measure.busy import OnlyMeasurement
from vtexport.measure.energy import EnergyMeter
from vtexport.measure.files import write_whole
from vtexport.measure.machine import describe_machine
from vtexport.measure.partial import Lines, left_behind, partial_path
from vtexport.measure.record import (
    BENCH_NAME,
    FOLDER,
    KIND,
    SCHEMA_VERSION,
    SOAK_NAME,
    Header,
    Memory,
    Note,
    Report,
    Sample,
    encode,
)
from vtexport.measure.report import make_report
from vtexport.measure.soak import SoakBench
from vtexport.version import __version__


def report_path(bundle: Bundle, request: Request, output: str | Path | None) -> Path:
    """The report's file: `output`, or in the folder `reports` of the bundle.

    Raises:
        UsageError: it lies in the hub's cache.
    """
    name = BENCH_NAME if request.rate is None else SOAK_NAME
    path = Path(output) if output is not None else bundle.folder / FOLDER / name
    refuse_to_write(path)
    return path


def measure(bundle: Bundle, request: Request, path: Path, command: str, hooks: Hooks | None = None) -> Report:
    """Measures and writes the report; one that was ended early says by what.

    Args:
        bundle: that the report is about; the request's other bundle is `against`.
        request: what and how.
        path: the report's file, which is replaced in one step.
        command: as it was given, for the record.
        hooks: of who watches.

    Raises:
        UsageError, InputError, BundleError, MissingDependencyError: nothing could be measured, or the report cannot be
            written; an earlier report stays.
    """
    hooks = hooks or Hooks()
    request.check()
    _check_writable(path)
    if request.energy != "nothing":
        EnergyMeter(request.rail, request.settings.device).close()  # refuses a rail that is not there
    with OnlyMeasurement() as only:
        for warning in only.warnings:
            hooks.stage(f"warning: {warning}")
        notes = [*finish_left_behind(path)]
        memory = measure_memory(request, hooks) if request.memory else []
        request, note = _loaded(request, memory)
        notes += [note] if note else []
        header = make_header(bundle, request, command)
        bench = SoakBench if request.rate is not None else Bench
        with Lines(path, header) as lines:
            for each in memory:
                lines.add(each)
            for text in notes:
                hooks.stage(f"note: {text}")
                lines.add(Note(text=text))
            try:
                interrupted = bench(request, lines, hooks).run()
            except BaseException:
                if not lines.samples:
                    lines.finish()  # nothing in it is worth keeping
                raise
            if not lines.samples:
                lines.finish()
                if interrupted == STOPPED:
                    raise KeyboardInterrupt
                raise InputError(f"nothing was measured ({interrupted or 'no image could be answered about'})")
            report = make_report(header, lines.all(), _now(), interrupted)
            report.warnings += only.look()
            keep(path, report)
            lines.finish()
    return report


def keep(path: Path, report: Report) -> None:
    """Writes the report, in place of an earlier one in one step.

    Raises:
        InputError: the folder cannot be written.
    """
    write_whole(path, encode(report))


def finish_left_behind(path: Path) -> Sequence[str]:
    """Makes the report of a measurement whose process was killed, under a name of its own; sentences that say so.

    Raises:
        InputError: what it left cannot be read, or the report cannot be written.
    """
    found = left_behind(path)
    if found is None:
        return []
    header, lines = found
    if not any(isinstance(line, Sample) for line in lines):
        partial_path(path).unlink(missing_ok=True)
        return []
    stamp = "".join(each for each in header.created_at if each.isdigit())
    kept = path.with_name(f"{path.stem}-{stamp}{path.suffix}")
    write_whole(kept, encode(make_report(header, lines, _now(), "the end of its process")))
    partial_path(path).unlink(missing_ok=True)
    return [f"a measurement of {header.created_at} was killed; what it had measured is in {printable(kept)}"]


def make_header(bundle: Bundle, request: Request, command: str) -> Header:
    """The facts that a report begins with."""
    other = next((each.bundle for each in request.contenders if each.against), None)
    settings, pictures = request.settings, request.pictures
    return Header(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        mode="bench" if request.rate is None else "soak",
        created_at=_now(),
        command=command,
        bundle=printable(bundle.folder),
        bundle_name=bundle.manifest.name,
        manifest_sha256=hash_file(bundle.path(MANIFEST_NAME)),
        against=None if other is None else printable(other.folder),
        against_manifest_sha256=None if other is None else hash_file(other.path(MANIFEST_NAME)),
        machine=describe_machine(),
        versions=_versions(),
        device=settings.device,
        threads=settings.threads,
        precision=bundle.manifest.precision,
        prompt=settings.prompt,
        new_tokens=settings.new_tokens,
        logits_processors=settings.logits_processors,
        images=pictures.names,
        synthetic=pictures.synthetic,
        seed=request.seed,
        warm_up=request.warm_up,
        loaded="one" if request.one_at_a_time else "all",
        answers_per_turn=request.answers_per_turn,
        rate=request.rate,
        asked_s=request.seconds,
        asked_samples=request.samples if request.seconds is None else None,
        plans=[contender.facts() for contender in request.contenders],
    )


def _loaded(request: Request, memory: Sequence[Memory]) -> tuple[Request, str | None]:
    """The request, with one plan loaded at a time where all together do not fit the free memory, and a note on that."""
    if request.one_at_a_time or len(request.contenders) < 2 or not memory or fits(memory) is not False:
        return request, None
    peaks = sum(each.peak_rss_bytes or 0 for each in memory) / 1e9
    return replace(request, one_at_a_time=True), (
        f"the plans take {peaks:.1f} GB together, more than is free, so one is loaded at a time and answers a block of "
        "each turn"
    )


def _check_writable(path: Path) -> None:
    """Refuses before the work what would be refused after it.

    Raises:
        InputError: the report's folder cannot be made or written, or the report's name is a folder's.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made ({error.strerror}); choose another -o/--output") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file as -o/--output")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path.parent} cannot be written (no permission); choose another -o/--output")


def _versions() -> dict[str, str]:
    found = {"vtexport": __version__, "numpy": np.__version__}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
