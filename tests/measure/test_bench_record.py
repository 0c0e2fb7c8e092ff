"""Reports written and read again, and files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from made_up_measurement import header, sample

from vtexport.errors import InputError
from vtexport.measure.record import Failure, Note, encode, read_report
from vtexport.measure.report import make_report


def written(path: Path) -> Path:
    lines = [*(sample(turn=turn) for turn in range(5)), Failure(image="x", reason="no image", at_s=0.0), Note(text="n")]
    path.write_bytes(encode(make_report(header(), lines, "then")))
    return path


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report = read_report(written(tmp_path / "r.json"))
    assert encode(report) == (tmp_path / "r.json").read_bytes()
    assert (report.notes, report.failures[0].image, len(report.samples)) == (["n"], "x", 5)


def test_a_bundles_folder_stands_for_its_report(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    written(tmp_path / "reports" / "bench.json")
    assert read_report(tmp_path).figures("p") is not None
    assert read_report(tmp_path).figures("q") is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a report"),
        (b"{}", "is not a report"),
        (b"\xff\xfe", "is not a report"),
        (b"[" * 100_000, "is not a report"),
        (b'{"header": {"kind": "other", "schema_version": 1}}', "its kind is 'other'"),
        (b'{"header": {"kind": "vtexport measurement", "schema_version": 99}}', "has schema_version 99, not 1"),
        (b'{"header": {"kind": "vtexport measurement", "schema_version": 1}}', "is damaged"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("measure again with `vtexport bench`")


def test_a_damaged_value_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json")
    whole = json.loads(path.read_text())
    whole["plans"][0]["total_ms"]["p50"] = "fast"
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"is damaged .*total_ms.p50"):
        read_report(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is not a report"):
        read_report(path)


def test_no_file_and_no_plain_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bench.json cannot be read \(No such file"):
        read_report(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a plain file"):
        read_report(tmp_path / "pipe")
