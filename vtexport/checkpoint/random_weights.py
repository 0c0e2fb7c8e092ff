"""A checkpoint of seeded random weights with a model's true shapes, names and files, written without holding it.

Values are streamed in chunks, so memory does not grow with the model. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtexport.checkpoint.model_config import read_model_config
from vtexport.checkpoint.placeholder_processing import write_placeholder_processing
from vtexport.checkpoint.random_values import distribution_of, value_chunks
from vtexport.checkpoint.safetensors_index import SHARD_INDEX, SINGLE_FILE
from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import InputError, quoted

SHARD_BYTES = 5_000_000_000  # as the hub's files usually are
RECIPE_VERSION = 1  # raised whenever the same configuration and seed give other bytes

_HEADER_ALIGNMENT = 8
_PARTIAL_PREFIX = ".partial-"
# What belongs to a checkpoint beside its weights. `*.json` would take shard indices and adapters with it.
_COPIED_FILES = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


def write_random_checkpoint(
    config_folder: Path,
    destination: Path,
    seed: int,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint with the shapes that `config_folder`'s config.json implies into the new folder `destination`.

    Configuration and tokenizer files are copied, missing ones replaced by placeholders; the weights are in the
    configuration's dtype under the names of the hub's files, in shards of at most `shard_bytes` bytes of data (one
    larger tensor makes a larger shard). `progress` is called with the bytes written and the bytes in all.

    Raises:
        InputError: the configuration cannot be used, `destination` exists, or there is no room for it on the disk.
    """
    model = read_model_config(config_folder)
    dtype = model.file.dtype
    shapes = {model.family.hub_name(name): shape for name, shape in model.shapes.items()}
    tied_head = not any(name.endswith("lm_head.weight") for name in shapes)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists already; delete it or name a folder that does not exist")
    parent = destination.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _check_room(parent, _data_bytes(shapes, dtype))
        partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL_PREFIX}{destination.name}-", dir=parent))
        try:
            write_small_files(config_folder, partial, model.config)
            writer = _WeightWriter(dtype, seed, tied_head, progress)
            writer.write(partial, shapes, shard_bytes)
            _make_readable(partial)
            partial.replace(destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{destination} cannot be written: {quoted(error.strerror or error, destination)}; make room or choose "
            "another folder"
        ) from error


def write_small_files(config_folder: Path, folder: Path, config: Any) -> None:
    """Copy what belongs to the model beside its weights into `folder`, with placeholders for what is missing.

    Raises:
        InputError: the configuration's vocabulary has no room for a placeholder tokenizer.
    """
    for source in copied_files(config_folder):
        shutil.copyfile(source, folder / source.name)
    write_placeholder_processing(folder, config)


def copied_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that belong to the model beside its weights, in a fixed order."""
    return [folder / name for name in _COPIED_FILES if (folder / name).is_file()]


def remove_partial(destination: Path) -> None:
    """Delete what a killed `write_random_checkpoint` left; nobody else may be writing `destination` meanwhile."""
    for partial in destination.parent.glob(f"{_PARTIAL_PREFIX}{destination.name}-*"):
        shutil.rmtree(partial, ignore_errors=True)


class _WeightWriter:
    """Streams tensors into safetensors files and reports how far it is."""

    def __init__(self, dtype: str, seed: int, tied_head: bool, progress: Callable[[int, int], None] | None) -> None:
        self._dtype = dtype
        self._seed = seed
        self._tied_head = tied_head
        self._progress = progress
        self._written = 0

    def write(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> None:
        """Write all tensors: `model.safetensors`, or numbered shards with their index where they need several."""
        total = _data_bytes(shapes, self._dtype)
        shards = list(_shards(shapes, self._dtype, shard_bytes))
        if len(shards) == 1:
            self._write_file(folder / SINGLE_FILE, shards[0], total)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._write_file(folder / file_name, shard, total)
            weight_map |= dict.fromkeys(shard, file_name)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / SHARD_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write_file(self, file: Path, shapes: Mapping[str, tuple[int, ...]], total: int) -> None:
        with file.open("wb") as stream:
            stream.write(_header(shapes, self._dtype, self._seed))
            for name, shape in shapes.items():
                distribution = distribution_of(name, shape, tied_head=self._tied_head)
                count = math.prod(shape)
                for chunk in value_chunks(name, count, distribution, dtype=self._dtype, seed=self._seed):
                    stream.write(chunk.data)
                    self._written += chunk.nbytes
                    if self._progress is not None:
                        self._progress(self._written, total)


def _shards(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut where the next one would take a shard over `shard_bytes`."""
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and _data_bytes(shard, dtype) + _data_bytes({name: shape}, dtype) > shard_bytes:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> bytes:
    # "format" is what transformers looks for; the other entry lets anyone see what the file is.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "vtexport": f"random weights, seed {seed}"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _data_bytes({name: shape}, dtype)
        header[name] = {"dtype": WEIGHT_DTYPES[dtype].safetensors, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _data_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * WEIGHT_DTYPES[dtype].itemsize


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"random weights of this model take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "make room or choose another folder"
        )


def _make_readable(folder: Path) -> None:
    """Undo mkdtemp's private mode and whatever the umask took away: checkpoints are read by other users too."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
