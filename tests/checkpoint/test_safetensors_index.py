"""The header reader: what it finds, and that every lie of a file ends in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vtexport.checkpoint.safetensors_index import (
    SHARD_INDEX,
    SINGLE_FILE,
    TensorEntry,
    listed_names,
    read_header,
    read_index,
)
from vtexport.errors import InputError


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


VALID = {
    "__metadata__": {"format": "pt"},
    "a": tensor(0, 8),
    "empty": tensor(8, 8, (0, 3)),
    "b": tensor(8, 12, (), "I32"),
}


def test_entries_point_at_the_bytes(tmp_path: Path) -> None:
    arrays = {"x.weight": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.arange(4, dtype=np.int64)}
    save_file(arrays, tmp_path / SINGLE_FILE)
    entries = read_index(tmp_path)
    assert set(entries) == set(arrays)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    for name, array in arrays.items():
        entry = entries[name]
        assert (entry.shape, entry.nbytes) == (array.shape, array.nbytes)
        assert content[entry.offset : entry.offset + entry.nbytes] == array.tobytes()
    assert entries["x.weight"].dtype == "F16"


def test_scalars_empty_tensors_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / SINGLE_FILE
    file.write_bytes(safetensors_bytes(VALID, bytes(12)))
    start = 8 + len(json.dumps(VALID))
    assert read_header(file) == {
        "a": TensorEntry(file.resolve(), start, 8, (2,), "F32"),
        "empty": TensorEntry(file.resolve(), start + 8, 0, (0, 3), "F32"),
        "b": TensorEntry(file.resolve(), start + 8, 4, (), "I32"),
    }


def test_symlinks_are_resolved(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0a1b"
    blob.parent.mkdir()
    blob.write_bytes(safetensors_bytes(VALID, bytes(12)))
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / SINGLE_FILE).symlink_to(blob)
    assert read_index(snapshot)["a"].file == blob.resolve()


LIES = {
    "empty file": (b"", "too short"),
    "half a length": (b"\x08\0\0", "too short"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "header over 100 MB": (safetensors_bytes(VALID, length=100_000_001), "claims a header of 100000001 bytes"),
    "header over 2**63": (safetensors_bytes(VALID, length=2**64 - 1), "over the format's 100000000"),
    "header longer than the file": (safetensors_bytes({}, length=90_000_000), "only 10 bytes long"),
    "not JSON": (safetensors_bytes(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not JSON"),
    "nested without end": (safetensors_bytes(b"[" * 200_000), "it is damaged"),
    "a list": (safetensors_bytes([1]), "not a JSON object"),
    "a tensor twice": (safetensors_bytes(b'{"a": 1, "a": 2}'), "occurs twice"),
    "a tensor that is a number": (safetensors_bytes({"a": 7}), "tensor a with something other"),
    "no shape": (safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "shape None"),
    "negative size": (safetensors_bytes({"a": tensor(shape=(-2,))}, bytes(8)), "shape [-2]"),
    "boolean size": (safetensors_bytes({"a": tensor(shape=[True, 2])}, bytes(8)), "shape [True, 2]"),
    "size as a float": (safetensors_bytes({"a": tensor(shape=[2.0])}, bytes(8)), "shape [2.0]"),
    "endless rank": (safetensors_bytes({"a": tensor(shape=[1] * 99)}, bytes(8)), "shape [1, 1"),
    "unknown dtype": (safetensors_bytes({"a": tensor(dtype="F4")}, bytes(8)), "dtype F4, which vtexport does not read"),
    "dtype that is a list": (safetensors_bytes({"a": tensor(dtype=[])}, bytes(8)), "dtype []"),
    "negative offset": (safetensors_bytes({"a": tensor(-8, 0)}, bytes(8)), "data_offsets [-8, 0]"),
    "one offset": (safetensors_bytes({"a": tensor() | {"data_offsets": [0]}}, bytes(8)), "data_offsets [0]"),
    "offsets reversed": (safetensors_bytes({"a": tensor(8, 0)}, bytes(8)), "-8 bytes of data"),
    "size is not shape x dtype": (safetensors_bytes({"a": tensor(0, 8, (3,))}, bytes(8)), "needs 12"),
    "overlap": (safetensors_bytes({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "tensor b so that it overlaps"),
    "hole": (
        safetensors_bytes({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
        "tensor b so that it leaves a hole",
    ),
    "hole in front": (safetensors_bytes({"a": tensor(4, 12)}, bytes(12)), "tensor a so that it leaves a hole"),
    "bytes at the end": (safetensors_bytes({"a": tensor()}, bytes(9)), "1 bytes after its last tensor"),
    "truncated": (safetensors_bytes({"a": tensor(), "b": tensor(8, 16)}, bytes(12)), "but tensor b needs bytes"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_lies_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_index(tmp_path)
    assert message in str(caught.value)
    assert SINGLE_FILE in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_incomplete_download_says_so(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": tensor(), "b": tensor(8, 16)}, bytes(12))
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"ends at byte {len(content)} but tensor b needs bytes .* fetch the file again"
    ):
        read_index(tmp_path)


HUGE = 2**63 - 1
CLAIMS = {
    "header": safetensors_bytes({}, length=99_000_000),
    "header over the limit": safetensors_bytes({}, length=2**60),
    "shape": safetensors_bytes({"a": tensor(0, HUGE, (HUGE,), "U8")}, bytes(8)),
    "product": safetensors_bytes({"a": tensor(0, 8, (HUGE,) * 16)}, bytes(8)),
    "empty product": safetensors_bytes({"a": tensor(0, 8, (HUGE, 0))}, bytes(8)),
    "offsets": safetensors_bytes({"a": tensor(HUGE - 8, HUGE)}, bytes(8)),
}


@pytest.mark.parametrize("content", CLAIMS.values(), ids=CLAIMS)
def test_what_a_header_claims_is_not_allocated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_index(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_raise_only_input_errors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    _read_or_refuse(tmp_path_factory, content)


@settings(max_examples=300, deadline=None)
@given(header=st.binary(max_size=200), data=st.binary(max_size=20))
def test_random_headers_raise_only_input_errors(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes
) -> None:
    _read_or_refuse(tmp_path_factory, safetensors_bytes(header, data))


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(
    field=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=_anything,
    data=st.integers(0, 24),
)
def test_mutated_headers_raise_only_input_errors(
    tmp_path_factory: pytest.TempPathFactory, field: str | None, value: Any, data: int
) -> None:
    entry = value if field is None else VALID["a"] | {field: value}
    _read_or_refuse(tmp_path_factory, safetensors_bytes(VALID | {"a": entry}, bytes(data)))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_flipped_bytes_raise_only_input_errors(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    content = bytearray(safetensors_bytes(VALID, bytes(12)))
    content[position % len(content)] = byte
    _read_or_refuse(tmp_path_factory, bytes(content))


@settings(max_examples=200, deadline=None)
@given(content=_anything.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_mutated_shard_indices_raise_only_input_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-index"  # one folder for all examples: making many is slow
    folder.mkdir(exist_ok=True)
    for text in (content, b'{"weight_map": ' + content + b"}", b'{"weight_map": {"a": ' + content + b"}}"):
        (folder / SHARD_INDEX).write_bytes(text)
        with pytest.raises(InputError):
            read_index(folder)


def _read_or_refuse(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    file.write_bytes(content)
    try:
        entries = read_header(file)
    except InputError:
        return
    assert all(entry.offset >= 8 and entry.offset + entry.nbytes <= len(content) for entry in entries.values())


# Shards


def write_shards(folder: Path, weight_map: dict[str, Any], shards: dict[str, dict[str, Any]]) -> None:
    for name, tensors in shards.items():
        save_file({tensor: np.zeros(3, np.float16) for tensor in tensors}, folder / name)
    (folder / SHARD_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_joined(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": ONE, "b": TWO}, {ONE: {"a": 1}, TWO: {"b": 1, "unlisted": 1}})
    entries = read_index(tmp_path)
    assert {name: entry.file.name for name, entry in entries.items()} == {"a": ONE, "b": TWO, "unlisted": TWO}


def test_single_file_counts_before_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": ONE}, {ONE: {"a": 1}})
    save_file({"z": np.zeros(1)}, tmp_path / SINGLE_FILE)
    assert list(read_index(tmp_path)) == ["z"]


@pytest.mark.parametrize(
    ("weight_map", "shards", "message"),
    [
        ({"a": ONE, "b": TWO}, {ONE: {"a": 1}}, rf"^{TWO}, which .* names, is missing: the download is incomplete"),
        ({"a": ONE, "b": ONE}, {ONE: {"a": 1}}, f"places tensor b in {ONE}, which does not hold it"),
        ({"a": ONE, "b": ONE}, {ONE: {"a": 1}, TWO: {"b": 1}}, f"places tensor b in {ONE}, which does not hold it"),
        (
            {"a": ONE, "b": TWO},
            {ONE: {"a": 1}, TWO: {"a": 1, "b": 1}},
            f"tensor a is stored twice, in {ONE} and in {TWO}",
        ),
        ({"a": "../" + ONE}, {}, "names the shard ../model-00001"),
        ({"a": "/etc/passwd"}, {}, "no plain name of a .safetensors file"),
        ({"a": "..\\x.safetensors"}, {}, "no plain name of a .safetensors file"),
        ({"a": ".."}, {}, "names the shard .., which is no plain name"),
        ({"a": "x\0.safetensors"}, {}, "no plain name of a .safetensors file"),
        ({"a": "x\n.safetensors"}, {}, "no plain name of a .safetensors file"),
        ({"a": "\ud800.safetensors"}, {}, "no plain name of a .safetensors file"),
        ({"a": "x" * 300 + ".safetensors"}, {}, "names the shard xxx.* no plain name of a .safetensors file"),
        ({"a": "pytorch_model.bin"}, {}, "no plain name of a .safetensors file"),
        ({"a": 3}, {}, "names the shard 3, which"),
        ({}, {}, "has no weight_map"),
        ([ONE], {}, "has no weight_map"),
    ],
)
def test_bad_shard_sets_are_refused(tmp_path: Path, weight_map: Any, shards: Any, message: str) -> None:
    write_shards(tmp_path, weight_map, shards)
    with pytest.raises(InputError, match=message):
        read_index(tmp_path)


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=20) | st.text(max_size=400).map(lambda text: text + ".safetensors"))
@example(name="\udcff.safetensors")
@example(name="a/../../b.safetensors")
@example(name=".safetensors")
def test_no_shard_name_leads_out(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Every name is a plain one of a file that is missing, or refused; both can be printed."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed-shard"
    folder.mkdir(exist_ok=True)
    (folder / SHARD_INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError) as caught:
        read_index(folder)
    message = str(caught.value)
    assert message.encode()
    assert "\n" not in message
    assert "no plain name" in message or (folder / name).parent == folder


def test_an_endless_index_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / SHARD_INDEX).open("wb") as file:
        file.truncate(2**40)  # a file that is all hole
    with pytest.raises(InputError, match="is longer than 100000000 bytes"):
        read_index(tmp_path)


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / SHARD_INDEX).write_text('{"weight_map": ')
    with pytest.raises(InputError, match=rf"{SHARD_INDEX} has content that is not JSON"):
        read_index(tmp_path)


# Folders without safetensors weights


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], "holds no weights .*--weights random"),
        (["pytorch_model-00001-of-00002.bin"], r"as pytorch_model-00001-of-00002.bin only.*save_pretrained\(new"),
        (["mm_projector.bin", "pytorch_model.bin", "training_args.bin"], "as pytorch_model.bin only"),
        (["mm_projector.bin", "optimizer.pt", "adapter_model.safetensors"], "holds no weights"),
        (["consolidated.00.pth"], "as consolidated.00.pth only"),
        (["llava.gguf"], "as llava.gguf only, another library's format.*converted from"),
        (["model.fp16.safetensors"], "as a variant only .*rename it to model.safetensors"),
        (["model.fp16-00001-of-00002.safetensors"], "as a variant only .*variant='fp16' and save_pretrained"),
        (["consolidated.safetensors"], f"but neither {SINGLE_FILE} nor .* if it is the whole model .*rename it"),
        (["zero_to_fp32.py", "latest"], "a training state of DeepSpeed .*run python zero_to_fp32.py"),
        ([ONE, TWO], f"holds {ONE} but no {SHARD_INDEX}: the download is incomplete"),
    ],
)
def test_folders_without_weights(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=message):
        read_index(tmp_path)


def test_names_that_an_index_lists(tmp_path: Path) -> None:
    assert listed_names(tmp_path) == []
    (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": {"a": ONE, "b": TWO}}))
    assert listed_names(tmp_path) == ["a", "b"]
    (tmp_path / SHARD_INDEX).write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        listed_names(tmp_path)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_index(tmp_path / "nothing")


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path)
