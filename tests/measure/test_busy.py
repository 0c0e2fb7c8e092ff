"""Two measurements at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtexport.measure.busy import OnlyMeasurement

_OTHER = """
import sys; from pathlib import Path; from vtexport.measure.busy import OnlyMeasurement
with OnlyMeasurement(Path(sys.argv[1])) as only:
    print(only.warnings, flush=True)
    sys.stdin.readline()
    print(only.look(), flush=True)
"""


def test_alone_there_is_nothing_to_say(tmp_path: Path) -> None:
    for _ in range(2):
        with OnlyMeasurement(tmp_path) as only:
            assert only.look() == []


def test_each_of_two_says_it(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "[]\n"
        with OnlyMeasurement(tmp_path) as only:
            assert only.warnings == [
                f"another measurement runs on this machine (process {other.pid}); the two slow each other"
            ]
            said, _ = other.communicate("\n")
    began = f"another measurement began on this machine (process {os.getpid()}); the two slow each other"
    assert said == f"[{began!r}]\n"
    with OnlyMeasurement(tmp_path) as only:
        assert only.look() == []


def test_where_it_cannot_be_known_that_is_said(tmp_path: Path) -> None:
    with OnlyMeasurement(tmp_path / "nowhere") as only:
        (said,) = only.look()
    assert said.startswith("whether another measurement runs here is not known")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "vtexport-bench.lock").symlink_to(tmp_path / "mine")
    with OnlyMeasurement(tmp_path) as only:
        assert len(only.look()) == 1
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize("content", ["", "not a number\n", "{own}\n"])
def test_leftovers_of_an_earlier_one_do_not_count(tmp_path: Path, content: str) -> None:
    (tmp_path / "vtexport-bench.lock").write_text(content.format(own=os.getpid()) + "999999\n")
    with OnlyMeasurement(tmp_path) as only:
        assert only.look() == []
