"""A record for each answered question, kept as it comes, so that a run goes on where it was ended.

The records of one plan stand in one JSONL file, whose name and first line carry a digest of everything that an answer
or its time follows from: the plan's graphs and weights, and the settings. Another bundle, plan or setting is another
file. Each record carries a digest of its sample, so a changed image, question or reference is asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from vtexport.bundle.adaptive import read_adaptations
from vtexport.bundle.manifest import AdaptivePlan
from vtexport.bundle.reader import Bundle
from vtexport.errors import InputError, quoted

SCHEMA_VERSION = 2
_DIGITS = 16  # of the digest in a file's name


class RecordsInUseError(InputError):
    """Another process adds to the same records."""


class Record(msgspec.Struct, kw_only=True):
    """One answer and what it cost."""

    sample: str  # digest of the image, the question and the reference
    number: int  # of the line in the dataset
    id: str | None
    task: str
    question: str
    expected: str | list[str | float]
    answer: str
    score: float
    visual_tokens: int  # that entered the language model
    tokens_per_layer: float  # the same, on average over its layers
    new_tokens: int
    finish_reason: str
    plan: str  # that an adaptive plan chose, or the plan itself
    answered_box: list[float] | None = None  # in shares of the whole image, where a box was asked for and given
    warnings: list[str] = []
    # The stages of an answer whose image nobody looked at before, its file already decoded
    timings_ms: dict[str, float]


class Header(msgspec.Struct, kw_only=True):
    """The first line of a file of records."""

    schema_version: int
    digest: str
    plan: str
    settings: dict[str, Any]
    graphs: list[str]  # of the bundle, that answer
    machine: dict[str, Any]


class Records:
    """The records of one plan, open for adding; `known` has those there by their sample's digest.

    Raises:
        InputError: the file cannot be written, is being written by another process, or is not of this digest.
    """

    def __init__(self, folder: Path, header: Header):
        self.path = records_path(folder, header.plan, header.digest)
        self._header = header
        self.machine = header.machine  # that the first of the records was made on
        self.known: dict[str, Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); choose another -o/--output") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise RecordsInUseError(
                f"{self.path} is being written by another process; give the same command again when that has ended, or "
                "choose another -o/--output"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Record) -> None:
        """Writes one record; it is in the file, whole, when this returns."""
        self._write(record)
        self.known[record.sample] = record

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # a run was ended while it wrote a record
            self._file.truncate(len(whole))
        first, *lines = whole.split(b"\n")
        if not first:
            self._file.truncate(0)
            self._write(self._header)
            return
        try:
            header = msgspec.json.decode(first, type=Header)
            records = [msgspec.json.decode(line, type=Record) for line in lines if line]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                f"{self.path} does not hold records ({quoted(error, self.path)}); delete it or move it away"
            ) from error
        if (header.schema_version, header.digest) != (SCHEMA_VERSION, self._header.digest):
            raise InputError(f"{self.path} holds the records of another run; delete it or move it away")
        self.machine = header.machine
        self.known = {record.sample: record for record in records}

    def _write(self, line: msgspec.Struct) -> None:
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); free some space") from error


def records_path(folder: Path, plan: str, digest: str) -> Path:
    """The file of a plan's records."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in plan)
    return folder / f"{name}.{digest[:_DIGITS]}.jsonl"


class LineCounter:
    """Counts the lines that another process appends to a file which need not be there yet."""

    def __init__(self, path: Path):
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0
        self._header = self._read == 0  # the first line is no record

    def new(self) -> int:
        """Whole records since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return 0
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        count = whole.count(b"\n")
        if self._header and count:
            self._header = False
            return count - 1
        return count


def plan_digest(bundle: Bundle, name: str, graphs: Iterable[str], settings: Mapping[str, Any]) -> str:
    """SHA-256 of what the answers of a plan, and their times, follow from; files by the manifest's hashes.

    `graphs` are those that run.
    """
    manifest = bundle.manifest
    chosen = bundle.plan_or_adaptive(name)
    files = {path for path in manifest.files if path.endswith(".safetensors")}
    files |= {manifest.text.tokenizer, manifest.text.chat_template, manifest.text.embedding.file}
    files |= {manifest.graphs[each].file for each in graphs}
    described = []
    for plan in bundle.plans_of(name):
        without = {"command", "created_at", "graphs"}
        described.append({key: value for key, value in msgspec.to_builtins(plan).items() if key not in without})
    adaptations = read_adaptations(bundle.folder, manifest) if isinstance(chosen, AdaptivePlan) else {}
    text = msgspec.to_builtins(manifest.text)
    parts = {
        "schema": SCHEMA_VERSION,
        "plans": described,
        "adaptive_plan": msgspec.to_builtins(adaptations.get(chosen.name)),
        "files": sorted(manifest.files[path].sha256 for path in files),
        "image": msgspec.to_builtins(manifest.image),
        # end tokens and special tokens; the files count by what is in them
        "text": {
            name: value for name, value in text.items() if name not in {"embedding", "tokenizer", "chat_template"}
        },
        "generation": msgspec.to_builtins(manifest.generation),
        "precision": manifest.precision,
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
