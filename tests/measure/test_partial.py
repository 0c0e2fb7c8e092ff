"""Lines of a measurement as they come, and what a killed one leaves."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from made_up_measurement import header, sample

from vtexport.errors import InputError
from vtexport.measure.partial import Lines, left_behind, partial_path
from vtexport.measure.record import Calibration, Failure, Memory, Note, PowerFacts, StateAt, read_report
from vtexport.measure.session import finish_left_behind

ALL_KINDS = [
    sample(),
    Failure(image="x", reason="y", at_s=0.5),
    StateAt(when="during", at_s=1.0, state={"rss_bytes": 5}),
    Calibration(when="before", threads=1, gemm_gflops=1.0, copy_gb_per_s=2.0),
    Memory(plan="p", reason="none"),
    PowerFacts(reason="none"),
    Note(text="n"),
]


def test_every_kind_of_line_comes_back(tmp_path: Path) -> None:
    report = tmp_path / "new" / "r.json"
    with Lines(report, header()) as lines:
        for line in ALL_KINDS:
            lines.add(line)  # type: ignore[arg-type]
        assert left_behind(report) is None  # it is being written
        assert lines.all() == ALL_KINDS
    assert left_behind(report) == (header(), ALL_KINDS)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with Lines(report, header()) as lines:
        lines.add(sample())
    with partial_path(report).open("ab") as file:
        file.write(b'{"type": "sample", "pl')
    found = left_behind(report)
    assert found is not None
    assert found[1] == [sample()]


def test_the_next_measurement_makes_the_report_of_a_killed_one(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text("the report before it")
    with Lines(report, header()) as lines:
        for turn in range(3):
            lines.add(sample(turn=turn))
    (said,) = finish_left_behind(report)
    kept = tmp_path / "r-202601020304050000.json"
    assert str(kept) in said
    assert read_report(kept).interrupted == "the end of its process"
    assert len(read_report(kept).samples) == 3
    assert report.read_text() == "the report before it"
    assert not partial_path(report).exists()
    assert finish_left_behind(report) == []


def test_a_killed_one_without_samples_leaves_nothing(tmp_path: Path) -> None:
    with Lines(tmp_path / "r.json", header()):
        pass
    assert finish_left_behind(tmp_path / "r.json") == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_left_by_a_measurement_is_refused(tmp_path: Path) -> None:
    partial_path(tmp_path / "r.json").write_text("something else\n")
    with pytest.raises(InputError, match=r"is not what a measurement leaves .*delete it or move it away"):
        left_behind(tmp_path / "r.json")


def test_two_do_not_write_one_report(tmp_path: Path) -> None:
    with (
        Lines(tmp_path / "r.json", header()),
        pytest.raises(InputError, match="is being measured by another process"),
    ):
        Lines(tmp_path / "r.json", header())


def test_on_a_full_disk_the_lines_go_on_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lines(tmp_path / "r.json", header()) as lines:
        lines.add(Note(text="before"))
        file: Any = lines._file

        class Full:
            def write(self, data: bytes) -> int:
                file.write(data[:5])  # as much as there was room for
                file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self) -> None:
                file.close()

        monkeypatch.setattr(lines, "_file", Full())
        lines.add(sample())
        assert lines.problem is not None
        assert "(No space left on device)" in lines.problem
        lines.add(sample(turn=1))
        assert lines.all() == [Note(text="before"), sample(), sample(turn=1)]
        assert lines.samples == 2
