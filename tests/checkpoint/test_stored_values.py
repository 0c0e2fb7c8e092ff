"""Two stored tensors compared: by value, in any of three types, without holding them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vtexport.checkpoint import stored_values
from vtexport.checkpoint.safetensors_index import TensorEntry, read_header
from vtexport.checkpoint.stored_values import same_values
from vtexport.errors import InputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def entries(folder: Path, *tensors: torch.Tensor) -> list[TensorEntry]:
    """Each in a file of its own, behind another tensor."""
    found = []
    for number, tensor in enumerate(tensors):
        file = folder / f"{number}.safetensors"
        save_file({"a": torch.ones(number + 1), "b": tensor}, file)
        found.append(read_header(file)["b"])
    return found


@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_as_torch_has_it(
    tmp_path: Path, dtype: torch.dtype, other: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_values, "_CHUNK_VALUES", 7)
    torch.manual_seed(0)
    whole = torch.randn(5, 9).to(torch.float16).to(torch.bfloat16)  # a number of every type
    for place in (0, 6, 7, 44, None):
        changed = whole.clone()
        if place is not None:
            changed.view(-1)[place] += 1
        for left, right in ((whole.to(dtype), changed.to(other)), (whole.to(dtype).half(), whole.to(other))):
            first, second = entries(tmp_path, left.contiguous(), right.contiguous())
            assert same_values(first, second) == torch.equal(left.float(), right.float())


def test_what_bytes_do_not_show(tmp_path: Path) -> None:
    zero, negative, nan = torch.zeros(3), -torch.zeros(3), torch.full((3,), torch.nan)
    assert same_values(*entries(tmp_path, zero, negative)) == torch.equal(zero, negative) is True
    assert same_values(*entries(tmp_path, nan, nan.clone())) == torch.equal(nan, nan.clone()) is False
    assert not same_values(*entries(tmp_path, torch.zeros(2, 3), torch.zeros(3, 2)))


def test_large_matrices_are_not_held(tmp_path: Path) -> None:
    size = 64_000_000
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        with file.open("wb") as stream:
            stream.truncate(size)  # a file that is all hole
    first, second = (TensorEntry(file, 0, size, (size // 2,), "F16") for file in files)
    np.zeros(1)
    tracemalloc.start()
    try:
        assert same_values(first, second)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_vanished_or_shrank(tmp_path: Path) -> None:
    first, second = entries(tmp_path, torch.ones(100), torch.ones(100))
    second.file.write_bytes(second.file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"1\.safetensors changed while it was read"):
        same_values(first, second)
    second.file.unlink()
    with pytest.raises(InputError, match=r"1\.safetensors cannot be read"):
        same_values(first, second)
