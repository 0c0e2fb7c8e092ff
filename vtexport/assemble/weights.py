"""A checkpoint's weights in the bundle: safetensors files copied once, in the target precision, hashed on the way.

Nothing is read whole: a file passes through in chunks, and the SHA-256 of what was read and of what was written are
taken from the same chunks, by threads alongside the reading and writing. A file whose tensors already have the target
precision is copied byte for byte, so its hash is the source's. (File format: the safetensors header is an 8-byte
little-endian length and JSON; tensors follow.)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path

import numpy as np

from vtexport.assemble.finite import FiniteCheck, is_finite, not_finite
from vtexport.assemble.hashing import BackgroundDigest
from vtexport.checkpoint.float_values import from_float32, largest, to_float32
from vtexport.checkpoint.safetensors_index import WEIGHT_FORMATS, TensorEntry, read_header
from vtexport.dtypes import DTYPES
from vtexport.errors import InputError
from vtexport.graphs.weight import Weight

_CHUNK = 2**20  # bytes; a multiple of every item size, and small enough for the cache of a core


@dataclass(frozen=True)
class PlacedWeights:
    """Canonical name -> weight, and the SHA-256 of each file as it was read and as it was written."""

    tensors: dict[str, Weight]
    source_hashes: dict[str, str]
    written_hashes: dict[str, str]


def planned_bytes(tensors: Mapping[str, TensorEntry], precision: str) -> int:
    """Bytes that the weights will take in the bundle, headers aside."""
    return sum(int(np.prod(entry.shape)) * DTYPES[precision].itemsize for entry in tensors.values())


def copy_weights(
    tensors: Mapping[str, TensorEntry],
    folder: Path,
    precision: str,
    progress: Callable[[int], object] = lambda count: None,
) -> PlacedWeights:
    """Copies every file that holds one of `tensors` (canonical name -> entry) into `folder`.

    `progress` is called with the number of source bytes just read.

    Raises:
        InputError: a file cannot be read, or changed while it was copied; a value does not fit into `precision`.
    """
    copied = PlacedWeights({}, {}, {})
    for name, path, entries in files_of(tensors):
        same = all(dtype_of(canonical, entry) == precision for canonical, entry in entries.items())
        with (
            named_if_it_vanishes(),
            path.open("rb") as source,
            (folder / name).open("wb") as target,
            BackgroundDigest() as read,
            BackgroundDigest() as written,
        ):
            if same:
                check = FiniteCheck((key, e.offset, e.nbytes, dtype_of(key, e)) for key, e in entries.items())
                _copy_bytes(source, target, read, check, progress)
                placed = {key: stored_weight(name, entry, entry.offset) for key, entry in entries.items()}
            else:
                placed = _convert(source, target, read, written, name, entries, precision, progress)
            copied.source_hashes[path.name] = read.hexdigest()
            copied.written_hashes[name] = (read if same else written).hexdigest()
        # A copy of bytes has the header that the bytes came with, whatever stands in the checkpoint by now.
        _check_unchanged(path, folder / name if same else path, entries.values())
        copied.tensors.update(placed)
    return copied


def files_of(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Path, dict[str, TensorEntry]]]:
    """Each file of the checkpoint with its name in the bundle and those of `tensors` that it holds."""
    by_file: dict[Path, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        by_file.setdefault(entry.file, {})[name] = entry
    for number, (path, entries) in enumerate(sorted(by_file.items()), 1):
        # Hub snapshots resolve to blobs named by hash: give the bundle's files names that say what they are.
        name = "model.safetensors" if len(by_file) == 1 else f"model-{number:05d}-of-{len(by_file):05d}.safetensors"
        yield name, path, entries


@contextlib.contextmanager
def named_if_it_vanishes() -> Iterator[None]:
    """Makes one sentence of a file of the checkpoint that is not there any more.

    Raises:
        InputError: with its name.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename} vanished while it was read; restore the checkpoint and build again"
        ) from error


def _check_unchanged(path: Path, written: Path, entries: Iterable[TensorEntry]) -> None:
    """Refuses a weight file `path` that is not the one whose header told where the tensors lie, seen in `written`."""
    try:
        found = {(e.offset, e.nbytes, e.shape, e.dtype) for e in read_header(written).values()}
        same = found >= {(e.offset, e.nbytes, e.shape, e.dtype) for e in entries}
    except InputError:
        same = False
    if not same:
        raise InputError(f"{path} changed while it was copied; restore the checkpoint and build again")


def stored_weight(file: str, entry: TensorEntry, offset: int, *, beside: bool = False) -> Weight:
    """The weight that a stored tensor is when its bytes lie in the bundle's `file` at `offset`."""
    return Weight(file, offset, entry.nbytes, tuple(entry.shape), WEIGHT_FORMATS[entry.dtype].name, beside)


def dtype_of(name: str, entry: TensorEntry) -> str:
    """The type in which tensor `name` is stored, by its name in `vtexport.dtypes`.

    Raises:
        InputError: vtexport does not take it.
    """
    if entry.dtype not in WEIGHT_FORMATS:
        raise InputError(
            f"tensor {name} has dtype {entry.dtype}; vtexport takes checkpoints in {', '.join(WEIGHT_FORMATS)}"
        )
    return WEIGHT_FORMATS[entry.dtype].name


def _copy_bytes(
    source: BufferedReader,
    target: BufferedWriter,
    read: BackgroundDigest,
    check: FiniteCheck,
    progress: Callable[[int], object],
) -> None:
    """Reads and writes as `cp` does, through a ring of buffers, so that no memory is taken anew."""
    ring = itertools.cycle([memoryview(bytearray(_CHUNK)) for _ in range(BackgroundDigest.AHEAD + 1)])
    for buffer in ring:
        count = source.readinto(buffer)
        if not count:
            break
        read.update(buffer[:count])
        target.write(buffer[:count])
        check.look(buffer[:count])
        progress(count)


def _convert(
    source: BufferedReader,
    target: BufferedWriter,
    read: BackgroundDigest,
    written: BackgroundDigest,
    name: str,
    entries: Mapping[str, TensorEntry],
    precision: str,
    progress: Callable[[int], object],
) -> dict[str, Weight]:
    """Writes the file anew with canonical names and the target precision; the source is read once, in order."""
    ordered = sorted(entries.items(), key=lambda item: item[1].offset)
    header, begin, dtype = {}, 0, DTYPES[precision]
    for key, entry in ordered:
        end = begin + int(np.prod(entry.shape)) * dtype.itemsize
        header[key] = {"dtype": dtype.safetensors, "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(data: bytes | memoryview) -> None:
        written.update(data)
        target.write(data)

    def take(count: int) -> bytes:
        data = source.read(count)
        if len(data) != count:
            raise InputError(f"{source.name} changed while it was copied; restore the checkpoint and build again")
        read.update(data)
        progress(count)
        return data

    def skip_to(offset: int) -> None:
        while (gap := offset - source.tell()) > 0:
            take(min(gap, _CHUNK))

    write(struct.pack("<Q", len(text)) + text)
    placed = {}
    for key, entry in ordered:
        skip_to(entry.offset)
        start, left, largest = target.tell(), entry.nbytes, 0.0
        while left:
            data = take(min(left, _CHUNK))
            left -= len(data)
            converted = _converted(data, dtype_of(key, entry), precision)
            if not is_finite(converted, precision):
                largest = np.fmax(largest, _largest(data, dtype_of(key, entry)))
            write(converted)
            del data, converted  # before the next chunk comes
        if largest:
            raise InputError(_out_of_range(key, float(largest), precision))
        placed[key] = Weight(name, start, target.tell() - start, tuple(entry.shape), precision)
    while data := source.read(_CHUNK):  # what lies after the last tensor wanted still belongs to the file's hash
        read.update(data)
        progress(len(data))
    return placed


def _converted(data: bytes, dtype: str, precision: str) -> bytes | memoryview:
    if dtype == precision:
        return data
    with np.errstate(over="ignore"):  # found and named by the caller
        return from_float32(to_float32(data, DTYPES[dtype]), DTYPES[precision]).data


def _largest(data: bytes, dtype: str) -> float:
    """The largest magnitude; infinity where there is a NaN, which no precision can hold as a number either."""
    values = np.abs(to_float32(data, DTYPES[dtype]))
    return float("inf") if np.isnan(values).any() else float(values.max())


def _out_of_range(name: str, found: float, precision: str) -> str:
    if np.isinf(found):
        return not_finite(name)
    dtype = DTYPES[precision]
    most = f"{dtype.precision}'s largest number {largest(dtype):g}"
    return f"tensor {name} holds {found:g}, beyond {most}; use --precision fp32"
