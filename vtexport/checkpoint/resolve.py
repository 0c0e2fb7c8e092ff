"""From what the user names (an alias, a folder, a hub id) to an opened checkpoint with every tensor accounted for."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from vtexport.bundle.paths import check_name
from vtexport.checkpoint import hub
from vtexport.checkpoint.aliases import ALIASES, Alias, closest_alias
from vtexport.checkpoint.binding import bind_tensors
from vtexport.checkpoint.config_file import CONFIG_FILE, read_config_file
from vtexport.checkpoint.model_config import read_model_config
from vtexport.checkpoint.placeholder_processing import TOKENIZER_FILES, has_tokenizer
from vtexport.checkpoint.random_weights import RECIPE_VERSION, copied_files, remove_partial, write_random_checkpoint
from vtexport.checkpoint.safetensors_index import TensorEntry, read_index
from vtexport.errors import InputError, UsageError, quoted
from vtexport.models import family_of

CACHE_VARIABLE = "VTEXPORT_CACHE"
Weights = Literal["stored", "random"]
WEIGHTS = get_args(Weights)

_NOTIFY_ABOVE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from, as a bundle's manifest records it."""

    requested: str  # as the user wrote it
    kind: Literal["alias", "hub", "folder"]
    id: str  # hub id; the alias for a model that ships with vtexport; a folder's own name
    revision: str | None  # commit, for checkpoints from the hub
    weights: Weights  # what the opened checkpoint really has
    seed: int | None  # of random weights


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: every tensor its configuration asks for is there, in the right shape and a float dtype."""

    folder: Path
    source: Source
    family: ModuleType
    config: Any  # transformers' configuration object
    tensors: dict[str, TensorEntry]  # canonical name -> where it lies, in the model's order
    weight_files: tuple[Path, ...]  # symlinks resolved, in the order the tensors need them


@dataclass(frozen=True)
class _Located:
    """A folder on this machine with at least config.json, and what it was asked for as."""

    folder: Path
    kind: Literal["alias", "hub", "folder"]
    id: str
    revision: str | None
    weights: Weights


def notify_on_stderr(message: str) -> None:
    """Write one line to stderr."""
    print(message, file=sys.stderr, flush=True)


def open_checkpoint(
    model: str,
    *,
    weights: Weights = "stored",
    seed: int = 0,
    cache_dir: Path | None = None,
    notify: Callable[[str], None] = notify_on_stderr,
) -> Checkpoint:
    """Open the checkpoint that `model` names: an alias, else an existing folder, else a hub id (`owner/name@revision`).

    A folder that has an alias's name is given as `./NAME`.

    With `weights="random"` only the configuration (and the tokenizer where there is one) is taken, and the weights are
    written from `seed` into `cache_dir` ($VTEXPORT_CACHE, else ~/.cache/vtexport), once for each configuration and
    seed. `notify` gets lines for the user: what takes long.

    Raises:
        UsageError: `model` names nothing, or `weights` or `seed` has a value that does not exist.
        InputError: the checkpoint is missing, incomplete, damaged or of a kind vtexport cannot export.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; it takes {' or '.join(WEIGHTS)}")
    if seed < 0:
        raise UsageError(f"seed is {seed}; it takes 0 or a positive number")
    check_name(model, "rename the checkpoint's folder")
    located = _locate(model, weights, notify)
    if located.weights == "stored":
        return _open_folder(located.folder, located, model, seed=None)
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    check_name(cache, f"choose another cache folder (--cache-dir or {CACHE_VARIABLE})")
    folder = _cached_random_checkpoint(located, seed, cache, notify)
    try:
        return _open_folder(folder, located, model, seed=seed)
    except InputError as error:
        raise InputError(
            f"{quoted(error, folder, limit=240)} (written by vtexport itself: delete {folder} and run again)"
        ) from error


def default_cache_dir() -> Path:
    """$VTEXPORT_CACHE, else ~/.cache/vtexport."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "vtexport"


def _locate(model: str, weights: Weights, notify: Callable[[str], None]) -> _Located:
    if model in ALIASES:  # before folders: a bundle that stands here under the alias's name must not hide it
        return _locate_alias(ALIASES[model], weights, notify)
    path = Path(model).expanduser()
    if path.is_dir():
        return _Located(path, "folder", path.resolve().name, None, weights)
    if path.is_file():
        raise UsageError(f"{model} is a file; give the folder that holds {CONFIG_FILE}, the weights and the tokenizer")
    hub_id, _, revision = model.partition("@")
    if hub.HUB_ID.fullmatch(hub_id) and not model.endswith("@"):
        folder = hub.fetch_snapshot(hub_id, revision or None, with_weights=weights == "stored", notify=notify)
        return _Located(folder, "hub", hub_id, hub.commit_of(folder), weights)
    raise UsageError(_unknown(model))


def _locate_alias(alias: Alias, weights: Weights, notify: Callable[[str], None]) -> _Located:
    if alias.hub_id is None:
        return _Located(alias.folder, "alias", alias.name, None, weights)
    if weights == "random":
        return _Located(alias.folder, "alias", alias.hub_id, None, "random")
    folder = hub.fetch_snapshot(alias.hub_id, None, with_weights=True, notify=notify)
    return _Located(folder, "alias", alias.hub_id, hub.commit_of(folder), "stored")


def _unknown(model: str) -> str:
    if "/" in model or model.startswith((".", "~")):
        return f"there is no folder {model}, and it is not a hub id (owner/name@revision) either; check the path"
    close = closest_alias(model)
    if close is not None:
        return f"there is no model {model!r}; did you mean {close!r}?"
    return f"there is no model {model!r}; give a folder, an alias ({', '.join(ALIASES)}) or a hub id (owner/name)"


def _open_folder(folder: Path, located: _Located, requested: str, *, seed: int | None) -> Checkpoint:
    config_file = read_config_file(folder)  # what is plainly wrong is said before the seconds that reading it all takes
    family_of(config_file.model_type, str(config_file.path))
    stored = read_index(folder)
    if not has_tokenizer(folder):
        raise InputError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            "copy the tokenizer files of the model's repository into it"
        )
    model = read_model_config(folder)
    tensors = bind_tensors(stored, model, folder)
    source = Source(requested, located.kind, located.id, located.revision, located.weights, seed)
    weight_files = tuple(dict.fromkeys(entry.file for entry in tensors.values()))
    return Checkpoint(folder, source, model.family, model.config, tensors, weight_files)


def _cached_random_checkpoint(located: _Located, seed: int, cache: Path, notify: Callable[[str], None]) -> Path:
    """The folder in the cache with these random weights, written now if no run has done so before."""
    from filelock import FileLock, Timeout

    read_config_file(located.folder)  # refuse before a large model is written
    folder = cache / "random-weights" / _cache_name(located, seed)
    if folder.is_dir():  # it is put in place whole
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"waiting for another process that is writing {folder}")
            lock.acquire()
    except OSError as error:
        raise InputError(
            f"the cache folder {cache} cannot be written ({quoted(error.strerror or error, cache)}); "
            f"set {CACHE_VARIABLE} to a folder that can"
        ) from error
    try:
        if not folder.is_dir():
            remove_partial(folder)
            write_random_checkpoint(located.folder, folder, seed, progress=_progress_lines(folder, notify))
    finally:
        lock.release()
    return folder


def _cache_name(located: _Located, seed: int) -> str:
    """A folder name that changes with everything the written files depend on."""
    digest = hashlib.sha256(f"{RECIPE_VERSION}:{seed}".encode())
    for file in copied_files(located.folder):
        digest.update(f"\0{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    label = re.sub(r"[^A-Za-z0-9._-]+", "--", located.id).strip(".-") or "model"
    return f"{label}-seed{seed}-{digest.hexdigest()[:12]}"


def _progress_lines(folder: Path, notify: Callable[[str], None]) -> Callable[[int, int], None]:
    """A line at the start and at each tenth, for models that take long enough to wonder."""
    reported = -1

    def report(written: int, total: int) -> None:
        nonlocal reported
        tenth = 10 * written // total
        if total >= _NOTIFY_ABOVE_BYTES and tenth > reported:
            reported = tenth
            notify(f"writing random weights to {folder}: {written / 1e9:.1f} of {total / 1e9:.1f} GB")

    return report
