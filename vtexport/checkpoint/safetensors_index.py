"""Where every tensor of a folder of safetensors files lies, read from the headers alone.

The reader is strict, because what it returns is later mapped into memory and named as external data of ONNX graphs: a
header may not claim anything that the file does not hold. The format is described at
https://github.com/huggingface/safetensors#format: eight bytes of header length, the header as JSON, then the data of
all tensors without holes.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import InputError, quoted

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"

# Bytes of one element. The formats below one byte an element (F4, F6) are quantised weights and not read here.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# Those that weights are read in
WEIGHT_FORMATS = {each.safetensors: each for each in WEIGHT_DTYPES.values()}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_RANK = 16
_MAX_NAME_BYTES = 255  # of a file's name, everywhere
_OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.gguf", "*.msgpack", "*.h5")
_OTHER_LIBRARIES = (".gguf", ".msgpack", ".h5")
# what training leaves beside a model under the same suffixes, and parts that are no model
_LEFTOVERS = (
    "training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states",
    "adapter_model", "mm_projector", "non_lora_trainables",
)  # fmt: skip
_DEEPSPEED = "zero_to_fp32.py"
_VARIANT = re.compile(r"model\.(?!safetensors)(?P<variant>\w+)(?P<shard>-\d+-of-\d+)?\.safetensors")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PLAIN_FILE_NAME = re.compile(r"(?!\.)[^/\\\x00]+")  # no folders, and no "." or ".." or hidden file
_FETCH_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: `nbytes` bytes from byte `offset` of `file`, in row-major order, little-endian."""

    file: Path  # symlinks resolved
    offset: int  # from the start of the file, not of its data section
    nbytes: int
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "F16", "BF16", "F32", ...


def read_index(folder: Path, named: str | None = None) -> dict[str, TensorEntry]:
    """Stored tensor name -> where it lies, for `model.safetensors` or the shards of `model.safetensors.index.json`.

    Where both are there the single file counts, as in transformers; `named` is the file or index that a configuration
    names instead (`transformers_weights`). Only headers are read.

    Raises:
        InputError: there are no weights in the folder, or a file is damaged, incomplete or not safetensors.
    """
    if named is not None:
        return _read_named(folder, named)
    single, index = folder / SINGLE_FILE, folder / SHARD_INDEX
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _read_shards(folder, index)
    raise _no_weights(folder)


def _read_named(folder: Path, named: str) -> dict[str, TensorEntry]:
    where = f"config.json of {folder} names the weights {_short(named)} (transformers_weights)"
    # The name comes from a file that may have been downloaded: it must not lead out of the folder.
    if not _PLAIN_FILE_NAME.fullmatch(named) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{where}, no plain name of a safetensors file or index; correct it or fetch it again")
    file = folder / named
    if not named.isprintable() or len(os.fsencode(named)) > _MAX_NAME_BYTES or not file.is_file():
        raise InputError(f"{where}, which is not there; fetch it, or take the entry out to use {SINGLE_FILE}")
    return read_header(file) if named.endswith(".safetensors") else _read_shards(folder, file)


def listed_names(folder: Path) -> list[str]:
    """Names of the tensors that an index of shards lists, for a look before the shards are there; none without one.

    Raises:
        InputError: the index is damaged.
    """
    index = folder / SHARD_INDEX
    return list(_read_map(index)) if index.is_file() else []


def has_weight_files(folder: Path) -> bool:
    """Whether the folder has every shard that its index names; without an index, any safetensors file."""
    if (folder / SINGLE_FILE).is_file():
        return True
    index = folder / SHARD_INDEX
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / shard).is_file() for shard in {_shard_name(index, name) for name in _read_map(index).values()})


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Tensor name -> where it lies, for one safetensors file.

    Raises:
        InputError: the file cannot be read or its header claims what the file does not hold.
    """
    try:
        with file.open("rb") as stream:
            file_bytes = stream.seek(0, 2)
            stream.seek(0)
            header_bytes = _header_length(file, stream.read(_LENGTH_BYTES), file_bytes)
            raw = stream.read(header_bytes)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {quoted(error.strerror or error, file)}; check the file and its rights"
        ) from error
    header = _parse_json_object(file, raw, "a header")
    header.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + header_bytes
    real_file = file.resolve()
    entries = {name: _entry(file, real_file, name, claim, data_start) for name, claim in header.items()}
    _check_layout(file, entries, data_start, file_bytes)
    return entries


def _header_length(file: Path, prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise InputError(f"{file} is {file_bytes} bytes long, too short for a safetensors file; {_FETCH_AGAIN}")
    if prefix.startswith(b"version "):
        raise InputError(f"{file} is a Git LFS pointer, not the weights themselves; run `git lfs pull` in its folder")
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER_BYTES:
        raise InputError(
            f"{file} claims a header of {length} bytes, over the format's {_MAX_HEADER_BYTES}: "
            f"it is damaged or not a safetensors file; {_FETCH_AGAIN}"
        )
    if length > file_bytes - _LENGTH_BYTES:
        raise InputError(
            f"{file} claims a header of {length} bytes but is only {file_bytes} bytes long: "
            f"the download is incomplete or the file damaged; {_FETCH_AGAIN}"
        )
    return length


def _parse_json_object(file: Path, raw: bytes, what: str) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            raise ValueError("a name occurs twice")
        return parsed

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=without_repeats)
    except RecursionError as error:
        raise InputError(f"{file} has {what} nested too deeply to be true: it is damaged; {_FETCH_AGAIN}") from error
    except ValueError as error:  # includes text that is not UTF-8
        raise InputError(
            f"{file} has {what} that is not JSON ({quoted(error, file)}): it is damaged; {_FETCH_AGAIN}"
        ) from error
    if not isinstance(parsed, dict):
        raise InputError(f"{file} has {what} that is not a JSON object: it is damaged; {_FETCH_AGAIN}")
    return parsed


def _entry(file: Path, real_file: Path, name: str, claim: Any, data_start: int) -> TensorEntry:
    """One header item checked by itself; `_check_layout` checks it against the file and its neighbours."""

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{file} describes tensor {_short(name)} with {what}: it is damaged; {_FETCH_AGAIN}")

    if not isinstance(claim, dict):
        refuse("something other than a JSON object")
    dtype, shape, offsets = claim.get("dtype"), claim.get("shape"), claim.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InputError(
            f"{file} stores tensor {_short(name)} as dtype {_short(dtype)}, which vtexport does not read; "
            "use a checkpoint in float32, float16 or bfloat16"
        )
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_count(size) for size in shape):
        refuse(f"shape {_short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        refuse(f"data_offsets {_short(offsets)}")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != nbytes:
        refuse(f"{end - begin} bytes of data where {dtype} {_short(shape)} needs {nbytes}")
    return TensorEntry(real_file, data_start + begin, nbytes, tuple(shape), dtype)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # bool is an int to isinstance


def _check_layout(file: Path, entries: dict[str, TensorEntry], data_start: int, file_bytes: int) -> None:
    """The tensors fill the data section exactly: none overlaps another, nothing lies between, before or after."""
    in_order = sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes))
    ends = [data_start, *(entry.offset + entry.nbytes for _, entry in in_order)]
    for (name, entry), end in zip(in_order, ends[1:], strict=True):
        if end > file_bytes:
            raise InputError(
                f"{file} ends at byte {file_bytes} but tensor {_short(name)} needs bytes {entry.offset} to {end}: "
                f"the download is incomplete, {_FETCH_AGAIN}"
            )
    for (name, entry), previous_end in zip(in_order, ends[:-1], strict=True):
        if entry.offset != previous_end:
            relation = "overlaps the tensor before it" if entry.offset < previous_end else "leaves a hole before it"
            raise InputError(
                f"{file} stores tensor {_short(name)} so that it {relation}: it is damaged; {_FETCH_AGAIN}"
            )
    if ends[-1] != file_bytes:
        raise InputError(
            f"{file} holds {file_bytes - ends[-1]} bytes after its last tensor: it is damaged; {_FETCH_AGAIN}"
        )


def _read_map(index: Path) -> dict[str, Any]:
    """The index's `weight_map`, tensor name -> shard, its names not looked at yet."""
    try:
        with index.open("rb") as stream:
            raw = stream.read(_MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{index} cannot be read: {quoted(error.strerror or error, index)}; check the file and its rights"
        ) from error
    if len(raw) > _MAX_HEADER_BYTES:
        raise InputError(
            f"{index} is longer than {_MAX_HEADER_BYTES} bytes, which no list of tensors is; {_FETCH_AGAIN}"
        )
    weight_map = _parse_json_object(index, raw, "content").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map, which says what shard holds which tensor; {_FETCH_AGAIN}")
    return weight_map


def _read_shards(folder: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = _read_map(index)
    entries: dict[str, TensorEntry] = {}
    for shard in sorted({_shard_name(index, name) for name in weight_map.values()}):
        if not (folder / shard).is_file():
            raise InputError(
                f"{shard}, which {index} names, is missing: the download is incomplete; fetch {shard} into {folder}"
            )
        for name, entry in read_header(folder / shard).items():
            if name in entries:
                raise InputError(
                    f"tensor {_short(name)} is stored twice, in {entries[name].file.name} and in {shard}: "
                    f"files of two checkpoints are mixed in {folder}; fetch one of them into an empty folder"
                )
            entries[name] = entry
    _check_map(folder, index, weight_map, entries)
    return entries


def _shard_name(index: Path, name: Any) -> str:
    # The name comes from a file that may have been downloaded: it must not lead out of the folder.
    plain = isinstance(name, str) and name.isprintable() and _PLAIN_FILE_NAME.fullmatch(name)
    if not plain or not name.endswith(".safetensors") or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise InputError(
            f"{index} names the shard {_short(name)}, which is no plain name of a .safetensors file; {_FETCH_AGAIN}"
        )
    return name


def _check_map(folder: Path, index: Path, weight_map: dict[str, str], entries: dict[str, TensorEntry]) -> None:
    real_shards = {shard: (folder / shard).resolve() for shard in set(weight_map.values())}
    for name, shard in weight_map.items():
        if name not in entries or entries[name].file != real_shards[shard]:
            raise InputError(
                f"{index} places tensor {_short(name)} in {shard}, which does not hold it: "
                "index and shards are of different checkpoints; fetch them again together"
            )


def _no_weights(folder: Path) -> InputError:
    if not folder.is_dir():
        return InputError(f"{folder} is not a folder; give the folder that holds config.json and the weights")
    dangling = sorted(path.name for path in folder.glob("*.safetensors*") if not path.exists())
    if dangling:
        return InputError(
            f"{folder / dangling[0]} links to a file that is not there: a cache was cleaned or a download broke off; "
            "delete the link and fetch the file again"
        )
    stray = [
        path.name for path in sorted(folder.glob("*.safetensors")) if path.is_file() and not _is_leftover(path.name)
    ]
    variant = next((found for found in map(_VARIANT.fullmatch, stray) if found), None)
    if variant is not None:
        step = (
            f"load it with variant={_short(variant['variant'])!r} and save_pretrained() it into another folder"
            if variant["shard"]
            else f"rename it to {SINGLE_FILE}"
        )
        return InputError(
            f"{folder} holds its weights as a variant only ({_short(variant[0])}), which transformers reads where it "
            f"is named (variant=); {step}"
        )
    if shard := next(filter(_SHARD.fullmatch, stray), None):
        return InputError(
            f"{folder} holds {_short(shard)} but no {SHARD_INDEX}: "
            f"the download is incomplete; fetch {SHARD_INDEX} or save the model again with save_pretrained()"
        )
    if stray:
        return InputError(
            f"{folder} holds {_short(stray[0])} but neither {SINGLE_FILE} nor {SHARD_INDEX}, which transformers reads; "
            f"fetch those, or, if it is the whole model under transformers' tensor names, rename it to {SINGLE_FILE}"
        )
    if (folder / _DEEPSPEED).is_file():
        return InputError(
            f"{folder} holds a training state of DeepSpeed and no model; run python {_DEEPSPEED} . OUTPUT "
            "--safe_serialization there, and give a folder with the result, config.json and tokenizer"
        )
    found = sorted(path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern))
    other = next((name for name in found if not _is_leftover(name)), None)
    if other is not None and other.endswith(_OTHER_LIBRARIES):
        return InputError(
            f"{folder} holds its weights as {_short(other)} only, another library's format, and vtexport reads "
            "safetensors; give the checkpoint that it was converted from"
        )
    if other is not None:
        return InputError(
            f"{folder} holds its weights as {_short(other)} only, and vtexport reads safetensors; convert it with "
            "transformers: LlavaForConditionalGeneration.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return InputError(
        f"{folder} holds no weights ({SINGLE_FILE} or {SHARD_INDEX}); fetch them, "
        "or use `--weights random` to work with seeded random weights of the same shapes"
    )


def _is_leftover(name: str) -> bool:
    return name.startswith(_LEFTOVERS)


def _short(value: Any, limit: int = 120) -> str:
    """A value from a file as one readable piece of a message, however long or odd it is."""
    try:
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= limit else text[: limit - 3] + "..."
