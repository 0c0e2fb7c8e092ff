"""Runs that are ended amid their work: nothing lives on, what was answered is kept, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.eval.answering import Settings, answer_all
from vtexport.eval.dataset import open_dataset

PATIENCE = 60.0  # seconds, of a machine that does much else


def processes(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, _, _, its_session = (place / "stat").read_text().rpartition(") ")[2].split()[:4]
                if int(its_session) == session and state != "Z":
                    found.append(int(place.name))
    return found


def wait(condition: object, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"no {what} after {PATIENCE} s"
        time.sleep(0.01)


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`vtexport` in a session of its own, of which nothing is left behind."""
    command = [sys.executable, "-m", "vtexport", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        for each in processes(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.communicate()


def endless(verb: str, bundle: Path, output: Path, jobs: int) -> list[object]:
    """Two plans asked so much that no machine is done with it before it is ended."""
    limits = ["--limit", 100_000, "--threads", 1, "--max-new-tokens", 2, "--jobs", jobs, "--output", output]
    plans = ["--no-plot"] if verb == "sweep" else ["--plan", "prunesid-8,prunesid-16", "--no-baseline"]
    return [verb, bundle, *limits, *plans]


def end(process: subprocess.Popen[str], sent: signal.Signals, to_all: bool = False) -> str:
    """Sends the signal, and gives what was written once the last process is gone that could write there."""
    (os.killpg if to_all else os.kill)(process.pid, sent)
    written, _ = process.communicate(timeout=PATIENCE)
    wait(lambda: not processes(process.pid), "end of the processes")
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130)
    return written


@pytest.mark.parametrize(
    ("verb", "sent", "jobs"),
    [
        ("eval", signal.SIGINT, 1),
        ("eval", signal.SIGINT, 2),
        ("eval", signal.SIGKILL, 2),
        ("sweep", signal.SIGTERM, 2),
    ],
)
def test_interrupted_amid_answers(
    eval_bundle: Path, tmp_path: Path, verb: str, sent: signal.Signals, jobs: int
) -> None:
    """Its answers are kept, and the next run goes on."""
    if jobs > 1:
        pytest.importorskip("joblib", reason="joblib is not installed")
    records = tmp_path / "out" / "records"
    with running(*endless(verb, eval_bundle, tmp_path / "out", jobs)) as process:
        wait(lambda: any(path.stat().st_size > 2000 for path in records.glob("*")), "record")
        written = end(process, sent)
    assert "Traceback" not in written
    assert ("vtexport: interrupted" in written) == (sent != signal.SIGKILL)
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    name = max(before, key=lambda each: len(before[each]))
    limit = len(before[name].splitlines()) + 2
    settings = Settings(max_new_tokens=2, threads=1, jobs=jobs)
    plan = name.split(".")[0]
    result = answer_all(open_bundle(eval_bundle), plan, open_dataset("scenes", limit), settings, records)
    assert result.records.name == name
    assert [each.question.number for each in result.answered] == list(range(1, limit + 1))
    assert result.records.read_bytes().startswith(before[name][: before[name].rfind(b"\n") + 1])


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2, 0.5])
def test_interrupted_amid_the_start_of_workers(eval_bundle: Path, tmp_path: Path, moment: float) -> None:
    """Ctrl-C reaches each process of a terminal, in whatever it is at."""
    pytest.importorskip("joblib", reason="joblib is not installed")
    with running(*endless("eval", eval_bundle, tmp_path / "out", 2)) as process:
        wait(lambda: len(processes(process.pid)) > 1, "worker")
        time.sleep(moment)
        written = end(process, signal.SIGINT, to_all=True)
    assert written.endswith("vtexport: interrupted\n")
    assert "Traceback" not in written
    assert "Warning" not in written


def test_killed_amid_the_start_of_workers(eval_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="joblib is not installed")
    with running(*endless("eval", eval_bundle, tmp_path / "out", 2)) as process:
        wait(lambda: len(processes(process.pid)) > 4, "worker")  # two clean up
        end(process, signal.SIGKILL)
