"""`vtexport watch`: its lines, its summary, its end, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtexport.cli.main import main
from vtexport.runtime.pipeline import Pipeline

PLAN = ["--plan", "prunesid-16", "--threads", "1", "--max-new-tokens", "3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four frames, of which the second shows what the first does and the last cannot be read."""
    found = tmp_path / "frames"
    found.mkdir()
    noise = np.random.default_rng(6).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    for name, image in (("a", noise[0]), ("b", noise[0]), ("c", 255 - noise[1] // 4)):
        Image.fromarray(image).save(found / f"{name}.png")
    (found / "d.png").write_bytes(b"no image")
    return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", str(folder), "--prompt", "x?", "--offline", "--fps", "4", *PLAN]
    assert main(["watch", str(tiny_bundle), *arguments]) == 0
    out, err = capsys.readouterr()
    found = lines(out)
    with Pipeline.open(tiny_bundle, "prunesid-16", threads=1) as pipeline:
        expected = [pipeline.generate(folder / f"{name}.png", "x?", max_new_tokens=3) for name in "abc"]
    assert [each.get("answer") for each in found] == [*(answer.text for answer in expected), None]
    assert [(each["file"], each["frame"], each["position_s"]) for each in found] == [
        ("a.png", 0, 0.0),
        ("b.png", 1, 0.25),
        ("c.png", 2, 0.5),
        ("d.png", 3, 0.75),
    ]
    assert "d.png" in found[3]["error"]
    assert found[0].keys() == {
        *("frame", "time", "file", "position_s", "question", "dropped", "unchanged", "missed", "late", "answer"),
        *("finish_reason", "new_tokens", "visual_tokens", "plan", "timings_ms"),
    }
    assert (found[0]["visual_tokens"], found[0]["new_tokens"], found[0]["plan"]) == (16, 3, "prunesid-16")
    times = [datetime.fromisoformat(each["time"].replace("Z", "+00:00")) for each in found]
    assert [(time - times[0]).total_seconds() for time in times] == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.002)
    assert {"preprocess", "vision", "prune", "prefill", "first_token", "decode", "total"} == found[0][
        "timings_ms"
    ].keys()
    assert err == "3 answers (errors 1)\n"


def test_on_change_and_limit(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", str(folder), "--prompt", "x?", "--offline", "--on-change", "2%", "--limit", "2", *PLAN]
    assert main(["watch", str(tiny_bundle), *arguments]) == 0
    out, err = capsys.readouterr()
    first, second = lines(out)
    assert (first["file"], second["file"], second["unchanged"]) == ("a.png", "c.png", 1)
    assert "change" not in first
    assert second["change"] > 0.1
    assert err == "2 answers (unchanged 1)\n"


def test_ages_and_deadlines_in_the_machines_time(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the machine's speed: a deadline of a year cuts nothing, and ages grow along an answer."""
    arguments = ["--source", str(folder), "--prompt", "x?", "--fps", "1000", "--deadline", "8760h", *PLAN]
    assert main(["watch", str(tiny_bundle), *arguments]) == 0
    found = [each for each in lines(capsys.readouterr().out) if "answer" in each]
    for each in found:
        assert 0 <= each["start_age_ms"] < each["age_ms"]
        assert (each["late"], each["finish_reason"]) == (False, "length")
        assert each["timings_ms"]["total"] <= each["age_ms"] + 0.1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tiny_bundle: Path, folder: Path, number: signal.Signals) -> None:
    """While it waits for a file that never comes; the lines so far are whole."""
    command = [sys.executable, "-m", "vtexport", "watch", str(tiny_bundle), "--source", str(folder), "--prompt", "x?"]
    with subprocess.Popen(
        [*command, "--follow", *PLAN], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        came = 0
        while not came:  # files that are there before it looks for the first time do not count
            Image.new("RGB", (20, 20)).save(folder / ".new.png")
            (folder / ".new.png").rename(folder / "new.png")
            if process.poll() is not None or _has_line(process):
                came = 1
        first = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert {each["file"] for each in lines(first + out)} == {"new.png"}
    assert re.search(r"^\d+ answers?.*; stopped$", err.splitlines()[-1])


def _has_line(process: subprocess.Popen[str]) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0.05)[0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--source", "no/such.mp4"], 1, "there is no no/such.mp4 (--source)"),
        (["--source", ".", "--every=-1s"], 2, "'-1s' is no duration"),
        (["--source", ".", "--deadline", "0s"], 2, "'0s' is no duration"),
        (["--source", ".", "--limit", "0"], 2, "--limit is 0; give a whole number from 1"),
        (["--source", ".", "--offline", "--deadline", "1s"], 2, "--deadline is of no effect with --offline"),
        (["--source", ".", "--on-change", "100%"], 2, "on_change is 1.0; give a share"),
        (["--source", ".", "--fps", "-3"], 2, "fps is -3; give a number"),
    ],
)
def test_refuses(
    tiny_bundle: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    command = ["watch", str(tiny_bundle), "--prompt", "x?", "--plan", "prunesid-16", *arguments]
    try:
        found = main(command)
    except SystemExit as ended:  # argparse's own
        found = ended.code  # type: ignore[assignment]
    assert found == code
    assert message in capsys.readouterr().err


def test_a_prompt_that_is_too_long(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tiny_bundle), "--source", str(folder), "--prompt", "x" * 900, *PLAN]) == 2
    assert "positions" in capsys.readouterr().err
