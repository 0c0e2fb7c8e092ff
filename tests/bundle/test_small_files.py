"""Small JSON files beside a manifest: what is no plain file of a sensible length is refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded


def test_a_file_of_just_the_length(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[1, 2]")
    assert decode_json(read_bounded(tmp_path / "a.json", 6), list[int]) == [1, 2]
    with pytest.raises(UnreadableError, match="it has more than 5 bytes"):
        read_bounded(tmp_path / "a.json", 5)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for name in ("pipe", "."):
        with pytest.raises(UnreadableError, match="it is not a plain file"):
            read_bounded(tmp_path / name, 9)
    with pytest.raises(UnreadableError, match="No such file"):
        read_bounded(tmp_path / "gone", 9)


@pytest.mark.parametrize("text", [b"", b"{", b'["a"]', b"\xff", b"[" * 9999])
def test_what_is_no_such_json(text: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"."):
        decode_json(text, list[int])
