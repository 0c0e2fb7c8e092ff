"""From what the user names (an alias, a folder, a hub id) to an opened checkpoint with every tensor accounted for."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vtexport.bundle.paths import check_name
from vtexport.checkpoint import hub
from vtexport.checkpoint.aliases import ALIASES, closest_alias
from vtexport.checkpoint.binding import bind_tensors, judge_names
from vtexport.checkpoint.config_file import CONFIG_FILE, read_config_file
from vtexport.checkpoint.known_files import look_over
from vtexport.checkpoint.model_config import ModelConfig, read_model_config
from vtexport.checkpoint.placeholder_processing import TOKENIZER_FILES, has_tokenizer
from vtexport.checkpoint.plain_files import refuse_odd_files
from vtexport.checkpoint.random_weights import (
    RECIPE_VERSION,
    copied_files,
    remove_partial,
    write_random_checkpoint,
    write_small_files,
)
from vtexport.checkpoint.safetensors_index import TensorEntry, listed_names, read_index
from vtexport.errors import InputError, UsageError, VtexportError, quoted
from vtexport.models.family import Family
from vtexport.models.registry import family_of

CACHE_VARIABLE = "VTEXPORT_CACHE"
Weights = Literal["stored", "random"]
WEIGHTS = get_args(Weights)

_ADDRESS = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_NOTIFY_ABOVE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class CheckpointSource:
    """Origin of a checkpoint, as a bundle's manifest records it."""

    requested: str  # as the user wrote it
    kind: Literal["alias", "hub", "folder"]
    id: str  # hub id; the alias for a model that ships with vtexport; a folder's own name
    revision: str | None  # commit, for checkpoints from the hub
    weights: Weights  # what the opened checkpoint really has
    seed: int | None  # of random weights

    @property
    def from_hub(self) -> bool:
        """True where the files are a snapshot of a repository on the hub."""
        return self.kind != "folder" and hub.HUB_ID.fullmatch(self.id) is not None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: every tensor its configuration asks for is there, in the right shape and a float dtype."""

    folder: Path
    source: CheckpointSource
    family: Family
    config: Any  # transformers' configuration object
    tensors: dict[str, TensorEntry]  # canonical name -> where it lies, in the model's order
    head: str  # canonical name of the output matrix, as stored; the embedding's where both are one
    embedding: str
    absent: tuple[str, ...]  # tensors of the model that not every graph reads and that are not stored
    weight_files: tuple[Path, ...]  # symlinks resolved, in the order the tensors need them


@dataclass(frozen=True)
class Located:
    """A model whose small files are on this machine: all that can be judged before weights are fetched or written."""

    folder: Path  # with config.json at least; for random weights, the one they take the configuration from
    source: CheckpointSource
    model: ModelConfig

    @property
    def family(self) -> Family:
        """The model's family."""
        return self.model.family

    @property
    def config(self) -> Any:
        """transformers' configuration object."""
        return self.model.config


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
    """Open the checkpoint that `model` names: `locate` and `open_weights` in one.

    Raises:
        UsageError, InputError: as those do.
    """
    return open_weights(locate(model, weights=weights, seed=seed, notify=notify), cache_dir=cache_dir, notify=notify)


def locate(
    model: str,
    *,
    weights: Weights = "stored",
    seed: int = 0,
    notify: Callable[[str], None] = notify_on_stderr,
) -> Located:
    """Find what `model` names (an alias, else an existing folder, else a hub id `owner/name@revision`) and read its
    configuration. Of a repository on the hub only the small files are fetched.

    A folder that has an alias's name is given as `./NAME`. With `weights="random"` only the configuration (and the
    tokenizer where there is one) will be taken. `notify` gets lines for the user.

    Raises:
        UsageError: `model` names nothing, or `weights` or `seed` has a value that does not exist.
        InputError: the checkpoint is missing, incomplete, damaged or of a kind vtexport cannot export.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights is {weights!r}; it takes {' or '.join(WEIGHTS)}")
    if not model:
        raise UsageError("the model is empty; give a folder, an alias or a hub id")
    if seed < 0:
        raise UsageError(f"seed is {seed}; it takes 0 or a positive number")
    check_name(model, "rename the checkpoint's folder")
    folder, source = _find(model, weights, seed if weights == "random" else None, notify)
    refuse_odd_files(folder)
    config_file = read_config_file(folder)  # what is plainly wrong is said before the seconds that reading it all takes
    family_of(config_file.model_type, str(config_file.path))
    if weights == "stored":
        for note in look_over(folder):
            notify(note)
        if source.from_hub:  # the shards are not there yet, but their index names what they hold
            judge_names(listed_names(folder), folder)
        else:
            judge_names(read_index(folder, config_file.weights_file), folder)
        if not has_tokenizer(folder):
            raise InputError(
                f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
                "copy the tokenizer files of the model's repository into it"
            )
    elif config_file.dtype_note is not None:
        notify(config_file.dtype_note)
    return Located(folder, source, read_model_config(folder))


@contextmanager
def small_files(located: Located) -> Iterator[Path]:
    """A folder with the small files that the checkpoint has, or will have once its random weights are written."""
    if located.source.weights == "stored":
        yield located.folder
        return
    with tempfile.TemporaryDirectory(prefix="vtexport-") as temporary:
        folder = Path(temporary)
        write_small_files(located.folder, folder, located.config)
        yield folder


@contextmanager
def said_of(folder: Path, copy: Path, note: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """For a block that reads `copy`, a temporary copy of `folder`'s files: notes and errors then name `folder`.

    Gives the function to call with notes.
    """

    def named(text: str) -> str:
        return text.replace(str(copy), str(folder))

    try:
        yield lambda text: note(named(text))
    except VtexportError as error:
        raise type(error)(named(str(error))) from error


def open_weights(
    located: Located, *, cache_dir: Path | None = None, notify: Callable[[str], None] = notify_on_stderr
) -> Checkpoint:
    """Bind every tensor of a located model, after its weights are fetched from the hub or written from their seed.

    Random weights are written into `cache_dir` ($VTEXPORT_CACHE, else ~/.cache/vtexport), once for each configuration
    and seed. `notify` gets lines for the user: what takes long.

    Raises:
        InputError: weights are missing, damaged, or not those that the configuration asks for.
    """
    source = located.source
    if source.weights == "stored":
        folder = located.folder
        if source.from_hub:
            folder = hub.fetch_snapshot(source.id, source.revision, with_weights=True, notify=notify)
        return _bind(folder, located, notify)
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    check_name(cache, f"choose another cache folder (--cache-dir or {CACHE_VARIABLE})")
    folder = _cached_random_checkpoint(located, cache, notify)
    try:
        return _bind(folder, located, notify)
    except InputError as error:
        raise InputError(
            f"{quoted(error, folder, limit=240)} (written by vtexport itself: delete {folder} and run again)"
        ) from error


def default_cache_dir() -> Path:
    """$VTEXPORT_CACHE, else ~/.cache/vtexport."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "vtexport"


def _find(
    model: str, weights: Weights, seed: int | None, notify: Callable[[str], None]
) -> tuple[Path, CheckpointSource]:
    """The folder of the small files, and where it comes from."""

    def fetch(hub_id: str, revision: str | None) -> Path:
        return hub.fetch_snapshot(hub_id, revision, with_weights=False, notify=notify)

    if model in ALIASES:  # before folders: a bundle that stands here under the alias's name must not hide it
        alias = ALIASES[model]
        if alias.hub_id is None:
            return alias.folder, CheckpointSource(model, "alias", alias.name, None, weights, seed)
        if weights == "random":
            return alias.folder, CheckpointSource(model, "alias", alias.hub_id, None, weights, seed)
        folder = fetch(alias.hub_id, None)
        return folder, CheckpointSource(model, "alias", alias.hub_id, hub.commit_of(folder), weights, seed)
    path = Path(model).expanduser()
    if path.is_dir():
        return path, CheckpointSource(model, "folder", path.resolve().name, None, weights, seed)
    if path.is_file():
        raise UsageError(f"{model} is a file; give the folder that holds {CONFIG_FILE}, the weights and the tokenizer")
    hub_id, _, revision = model.partition("@")
    if hub.HUB_ID.fullmatch(hub_id) and not model.endswith("@"):
        folder = fetch(hub_id, revision or None)
        return folder, CheckpointSource(model, "hub", hub_id, hub.commit_of(folder), weights, seed)
    raise UsageError(_unknown(model))


def _unknown(model: str) -> str:
    if address := _ADDRESS.match(model):
        return f"{model} is a web address; give the hub id in it, {address[1]}"
    if "/" in model or model.startswith((".", "~")):
        return f"there is no folder {model}, and it is not a hub id (owner/name@revision) either; check the path"
    close = closest_alias(model)
    if close is not None:
        return f"there is no model {model!r}; did you mean {close!r}?"
    return f"there is no model {model!r}; give a folder, an alias ({', '.join(ALIASES)}) or a hub id (owner/name)"


def _bind(folder: Path, located: Located, notify: Callable[[str], None]) -> Checkpoint:
    stored = located.source.weights == "stored"
    bound = bind_tensors(read_index(folder, located.model.file.weights_file if stored else None), located.model, folder)
    for note in bound.notes:
        notify(note)
    return Checkpoint(
        folder=folder,
        source=located.source,
        family=located.family,
        config=located.config,
        tensors=bound.tensors,
        head=bound.head,
        embedding=bound.embedding,
        absent=bound.absent,
        weight_files=tuple(dict.fromkeys(entry.file for entry in bound.tensors.values())),
    )


def _cached_random_checkpoint(located: Located, cache: Path, notify: Callable[[str], None]) -> Path:
    """The folder in the cache with these random weights, written now if no run has done so before."""
    from filelock import FileLock, Timeout

    seed = located.source.seed or 0
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


def _cache_name(located: Located, seed: int) -> str:
    """A folder name that changes with everything the written files depend on."""
    digest = hashlib.sha256(f"{RECIPE_VERSION}:{seed}".encode())
    for file in copied_files(located.folder):
        digest.update(f"\0{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    label = re.sub(r"[^A-Za-z0-9._-]+", "--", located.source.id).strip(".-") or "model"
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
