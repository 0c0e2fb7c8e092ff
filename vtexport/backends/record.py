"""Record of a bundle's folder `engines/TARGET/`, in a file of its own: the bundle's manifest never changes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import leads_out
from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Sha256
from vtexport.bundle.reader import Bundle
from vtexport.bundle.references import is_inside
from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded
from vtexport.errors import BundleError, quoted

SCHEMA_VERSION = 2
RECORD_NAME = "engines.json"
FOLDER = "engines"  # inside a bundle; a folder for each target below
# Text around the image, template included, that an engine takes in one prefill unless the user says otherwise.
TEXT_TOKENS = 512
_AGAIN = "run `vtexport compile` again"


class _OtherManifestError(BundleError):
    """Engines that were built from another manifest than the bundle's."""


class Profile(msgspec.Struct, kw_only=True):
    """One range: least, usual and largest shape of every input with a length that varies."""

    name: str  # "prefill-64" for a budget of 64 visual tokens, "decode", or "question"
    shapes: dict[str, list[list[int]]]


class Engine(msgspec.Struct, kw_only=True):
    """One graph's engine; `profiles` are in the engine's own order and empty where all shapes are fixed."""

    file: str  # in the record's folder
    bytes: int
    sha256: Sha256
    profiles: list[Profile]
    peak_memory_bytes: int  # the largest resident memory of the process that built it
    plugins: list[str] = []  # ops that it has plugins for, each once; without their library it cannot be loaded


class PluginLibrary(msgspec.Struct, kw_only=True):
    """The library whose plugins stand in engines, as it was when they were built."""

    file: str  # its name; it is not in the bundle
    bytes: int
    sha256: Sha256


class Engines(msgspec.Struct, kw_only=True):
    """All engines of one target."""

    schema_version: int
    target: str
    builder: str  # "tensorrt_rtx 1.7.1.116"; an engine runs with the version that built it
    compute_capabilities: list[str]  # empty for a portable engine
    precision: str
    manifest_sha256: Sha256  # of the bundle's manifest.json that they were built from
    plugin_library: PluginLibrary | None = None  # None where no engine has plugins
    engines: Annotated[dict[str, Engine], msgspec.Meta(min_length=1)]  # by the graph's name in the manifest


def encode(record: Engines) -> bytes:
    """UTF-8 JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def read_engines(bundle: Bundle) -> list[Engines]:
    """The records of every target that engines were built for.

    Raises:
        BundleError: a record cannot be read, is of another manifest, names a file outside its folder, or a file is
            missing or of another size.
    """
    manifest = hash_file(bundle.path(MANIFEST_NAME))
    return [_read(path, manifest) for path in _records(bundle)]


@dataclass(frozen=True)
class FoundEngines:
    """Contents of a bundle's folders of engines.

    Attributes:
        usable: The records by the folders that they stand in, which hold their engines.
        outdated: A sentence for each record of engines that were built from another manifest.
        damaged: A sentence for each other record that cannot be used.
    """

    usable: dict[Path, Engines]
    outdated: list[str]
    damaged: list[str]


def find_engines(bundle: Bundle) -> FoundEngines:
    """The records of every target as `read_engines` reads them; what it would raise is among the sentences."""
    manifest = hash_file(bundle.path(MANIFEST_NAME))
    found = FoundEngines({}, [], [])
    for path in _records(bundle):
        try:
            found.usable[path.parent] = _read(path, manifest)
        except _OtherManifestError as error:
            found.outdated.append(str(error))
        except BundleError as error:
            found.damaged.append(str(error))
    return found


def verify_engines(found: FoundEngines, progress: Callable[[int], object] = lambda count: None) -> list[str]:
    """Reads every usable record's engines and compares their SHA-256; returns one sentence for each that differs.

    `progress` is called with each count of bytes read.
    """
    problems = []
    for folder, record in found.usable.items():
        for engine in record.engines.values():
            file = folder / engine.file
            try:
                digest = hash_file(file, progress)
            except OSError as error:
                problems.append(f"{file} cannot be read ({error.strerror}); {_AGAIN}")
                continue
            if digest != engine.sha256:
                problems.append(f"{file} does not have the SHA-256 that {RECORD_NAME} states; {_AGAIN}")
    return problems


def _records(bundle: Bundle) -> list[Path]:
    return sorted((bundle.folder / FOLDER).glob(f"[!.]*/{RECORD_NAME}"))


def _read(path: Path, manifest_sha256: str) -> Engines:
    if leads_out(path, path.parents[2]):
        raise BundleError(f"{path} leads out of the bundle; {_AGAIN}")
    try:
        record = decode_json(read_bounded(path, MAX_MANIFEST_BYTES), Engines)
    except UnreadableError as error:
        raise BundleError(f"{path} is not a record of engines ({quoted(error, path)}); {_AGAIN}") from error
    if record.schema_version != SCHEMA_VERSION:
        raise BundleError(f"{path} has schema_version {record.schema_version}, not {SCHEMA_VERSION}; {_AGAIN}")
    if record.manifest_sha256 != manifest_sha256:
        raise _OtherManifestError(f"{path} is of engines that were built from another manifest; {_AGAIN}")
    bundle = path.parents[2]
    for engine in record.engines.values():
        file = path.parent / engine.file
        try:
            status = file.stat() if is_inside(engine.file) else None
        except OSError:  # not there, or no name that a file can have
            status = None
        plain = status is not None and stat.S_ISREG(status.st_mode) and status.st_size == engine.bytes
        if not plain or leads_out(file, bundle):
            name = quoted(repr(engine.file), path)
            raise BundleError(f"{path} names {name}, which is not there with {engine.bytes} bytes; {_AGAIN}")
    return record
