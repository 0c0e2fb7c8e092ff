"""`vtexport bench` as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up_measurement import known_speed

from vtexport.bundle.reader import open_bundle
from vtexport.cli import quantities
from vtexport.cli.main import main
from vtexport.measure import bench, energy
from vtexport.measure.partial import partial_path
from vtexport.measure.power.sources import NoPower
from vtexport.measure.record import Report, read_report

PATIENCE = 120.0  # seconds, of a machine that does much else
QUICK = ("--samples", "4", "--new-tokens", "2", "--threads", "1", "--warm-up", "0", "--no-memory")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "calibrate", known_speed)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_all_plans_of_a_bundle(eval_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """The report lies in the bundle, whose manifest and its files stay as they are."""
    bundle = Path(shutil.copytree(eval_bundle, tmp_path / "b"))
    before = (bundle / "manifest.json").read_bytes()
    code, out, err = call(capsys, "bench", "b", *QUICK)
    assert code == 0
    for said in (
        "2 new tokens each, 'What is in the image?' about 8 synthetic pictures",
        "none",
        "prunesid-8",
        "prunesid-16 : none",
        "unattributed",
        "pruning pays",
        "the vision tower takes",
        "50.0 GFLOP/s in matrix products",
        "b/reports/bench.json",
    ):
        assert said in out
    assert "measuring none, prunesid-8, prunesid-16 by turns" in err
    assert "warning: none: 4 samples are few for p95 and p99" in err
    assert {path.name for path in (bundle / "reports").iterdir()} == {"bench.json"}
    assert (bundle / "manifest.json").read_bytes() == before
    assert open_bundle(bundle).verify() == []
    report = read_report(bundle)
    assert [plan.name for plan in report.plans] == ["none", "prunesid-8", "prunesid-16"]
    assert len(report.samples) == 12
    assert report.header.asked_samples == 4
    assert report.header.command.split()[0] == "vtexport"
    assert report.power is None


def test_json_is_the_report_without_samples(eval_bundle: Path, tmp_path: Path, photo: Path, capsys: Any) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = ("--image", photo, "--image", "broken.png", "--plan", "none", "-o", "r.json", "--json", "--quiet")
    code, out, err = call(capsys, "bench", eval_bundle, *QUICK, *given)
    assert code == 0
    result = json.loads(out)
    assert result["report"] == "r.json"
    assert "samples" not in result
    assert result["gate"] == {"failed": [], "unknown": [], "exit_code": 0}
    assert result["plans"][0]["total_ms"]["samples"] == 4
    assert [Path(each["image"]).name for each in result["failures"]] == ["broken.png"]
    assert "broken.png is left out: " in err
    assert "warning: 1 of the images could not be answered about" in err
    assert len(read_report("r.json").samples) == 4
    assert not (eval_bundle / "reports").exists()


def test_names_with_stray_bytes(tiny_bundle: Path, tmp_path: Path, photo: Path, capsys: Any) -> None:
    image = Path(shutil.copy(photo, os.fsdecode(b"i\xff") + photo.suffix))
    broken = Path(os.fsdecode(b"x\xff.png"))
    broken.write_bytes(b"")
    given = (*QUICK[:-1], "--plan", "prunesid-16", "--image", image, "--image", broken, "--json")
    output = Path(os.fsdecode(b"r\xff.json"))
    code, out, _ = call(capsys, "bench", tiny_bundle, *given, "-o", output)
    assert code == 0
    report = read_report(output)
    assert report.header.images == [f"i\\udcff{photo.suffix}"]
    assert report.failures[0].image == "x\\udcff.png"
    assert report.memory[0].reason is None
    assert report.memory[0].peak_rss_bytes
    assert json.loads(out)["plans"][0]["name"] == "prunesid-16"


def test_budgets_give_a_break_even(eval_bundle: Path, capsys: Any) -> None:
    code, out, _ = call(capsys, "bench", eval_bundle, *QUICK, "--keep", "16,8", "-o", "r.json")
    assert code == 0
    found = read_report("r.json").break_even
    assert found is not None
    assert (found.unpruned, found.plans) == ("none", ["prunesid-16", "prunesid-8"])
    assert found.sentence in out


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        (["--max-ttft-ms", "1e-6", "--percentile", "99"], 1, "prunesid-16: the time to first token is "),
        (["--max-total-ms", "1e-6"], 1, "prunesid-16: the time of the whole answer is "),
        (["--max-ttft-ms", "1e9", "--max-total-ms", "1e9"], 0, ""),
    ],
)
def test_limits(tiny_bundle: Path, capsys: Any, limit: list[str], code: int, said: str) -> None:
    given = ("--plan", "prunesid-16", "-o", "r.json", "--quiet")
    found, _, err = call(capsys, "bench", tiny_bundle, *QUICK, *given, *limit)
    assert found == code
    assert said in err
    assert ("over the limit" in err) is (code == 1)
    assert ("p99 of 4 samples is nearly their largest; take 100 or more" in err) is ("99" in limit)
    gate = read_report("r.json").gate
    assert gate is not None
    assert [f"vtexport: {sentence}" in err for sentence in gate.failed] == [True] * code
    assert gate.limits[limit[0][2:].replace("-", "_")] == float(limit[1])
    assert gate.limits["percentile"] == (99 if "99" in limit else 50)


def test_an_energy_that_nobody_can_measure_is_no_pass(tiny_bundle: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(energy, "open_power", lambda *args: NoPower("no sensor is here"))
    given = ("--plan", "prunesid-16", "-o", "r.json", "--max-energy-j", "5")
    code, out, err = call(capsys, "bench", tiny_bundle, *QUICK, *given)
    assert code == 3
    assert "prunesid-16: the energy of an answer is not known (no sensor is here)" in err
    assert "energy: unknown (no sensor is here)" in out
    report = read_report("r.json")
    assert report.energy == []
    assert report.gate is not None
    assert (report.gate.limits, report.gate.failed) == ({"max_energy_j": 5.0}, [])
    assert "the energy of an answer is not known" in report.gate.unknown[0]
    assert report.power is not None
    assert report.power.reason == "no sensor is here"


def scaled(report: Report, factor: float) -> Report:
    for plan in report.plans:
        for figures in (plan.first_token_ms, plan.total_ms):
            figures.p50 *= factor
    return report


def test_against_an_earlier_report(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    from vtexport.measure.record import encode

    given = (*QUICK, "--plan", "prunesid-16", "--quiet")
    assert call(capsys, "bench", tiny_bundle, *given, "-o", "old.json")[0] == 0
    for factor, code in ((1e3, 0), (1e-3, 1)):
        (tmp_path / "other.json").write_bytes(encode(scaled(read_report("old.json"), factor)))
        against = ("--against", "other.json", "--tolerance", "5%")
        found, _, err = call(capsys, "bench", tiny_bundle, *given, "-o", "new.json", *against)
        assert found == code
        assert ("% more, where 5 % are tolerated" in err) is bool(code)


def test_against_another_bundle_in_the_same_turns(tiny_bundle: Path, bundle_copy: Path, capsys: Any) -> None:
    given = (*QUICK, "--plan", "prunesid-16", "--quiet", "-o", "r.json", "--against", bundle_copy)
    code, out, _ = call(capsys, "bench", tiny_bundle, *given, "--tolerance", "1")
    assert code in (0, 1)  # as fast as the machine is: both are the same bundle
    report = read_report("r.json")
    assert [plan.name for plan in report.plans] == ["prunesid-16", "against:prunesid-16"]
    assert report.header.manifest_sha256 == report.header.against_manifest_sha256
    assert {(each.plan, each.over) for each in report.ratios} == {("prunesid-16", "against:prunesid-16")}
    assert "prunesid-16 : the other bundle's" in out
    assert len({each.turn for each in report.samples}) == 4


def test_a_soak(tiny_bundle: Path, capsys: Any) -> None:
    given = ("--plan", "prunesid-16", "--rate", "200/s", "--duration", "0.2s", "-o", "soak.json", "--quiet")
    code, out, _ = call(capsys, "bench", tiny_bundle, *QUICK[2:], *given)
    assert code == 0
    found = read_report("soak.json").soak
    assert found is not None
    assert found.answered + found.dropped + found.errors == found.due
    assert f"{found.answered} of {found.due} answered" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "nowhere is not a folder"),
        (["{bundle}", "--plan", "nope"], 2, "has no plan 'nope'"),
        (["{bundle}", "--keep", "16"], 2, "has no unpruned plan"),
        (["{bundle}", "--image", "nowhere.png"], 1, "nowhere.png"),
        (["{bundle}", "--image", "."], 1, "holds no image"),
        (["{bundle}", "--prompt", " "], 2, "the prompt is empty"),
        (["{bundle}", "--new-tokens", "0"], 2, "new tokens are 0"),
        (["{bundle}", "--new-tokens", "1000000"], 2, "more than the model's"),
        (["{bundle}", "--samples", "0"], 2, "samples are 0"),
        (["{bundle}", "--samples", "5", "--duration", "5s"], 2, "exclude each other"),
        (["{bundle}", "--threads", "0"], 2, "threads is 0"),
        (["{bundle}", "--device", "toaster"], 2, "device 'toaster' is not known"),
        (["{bundle}", "--max-ttft-ms", "-1"], 2, "max_ttft_ms is -1.0; give a number above 0"),
        (["{bundle}", "--percentile", "0"], 2, "the percentile is 0.0"),
        (["{bundle}", "--tolerance", "5%"], 2, "--tolerance is for --against"),
        (["{bundle}", "--rail", "VDD"], 2, "--rail is for --energy"),
        (["{bundle}", "--max-memory-mb", "5"], 2, "--no-memory leaves out"),
        (["{bundle}", "--against", "nowhere.json"], 1, "nowhere.json cannot be read"),
        (["{bundle}", "--against", "."], 4, "is not a bundle"),
        (["{bundle}", "--rate", "2/s"], 2, "--rate takes --duration"),
        (["{bundle}", "--rate", "2/s", "--duration", "1s"], 2, "--rate takes one plan; choose one with --plan"),
        (["{bundle}", "-o", "."], 1, "is a folder; give a file"),
        (["{bundle}", "-o", "/proc/nowhere/r.json"], 1, "choose another -o/--output"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    tiny_bundle: Path, tmp_path: Path, capsys: Any, arguments: list[str], code: int, said: str
) -> None:
    given = [str(tiny_bundle) if each == "{bundle}" else each for each in arguments]
    more = ["--no-memory", "--quiet", *([] if "-o" in given else ["-o", str(tmp_path / "r.json")])]
    found, out, err = call(capsys, "bench", *given, *more)
    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("vtexport: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [["--duration", "soon"], ["--rate", "5/week"], ["--tolerance", "5"]])
def test_quantities_that_are_none(tiny_bundle: Path, capsys: Any, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(tiny_bundle), *wrong])
    assert caught.value.code == 2
    assert f"{wrong[1]!r} is no " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (quantities.duration, "90", 90),
        (quantities.duration, "500ms", 0.5),
        (quantities.duration, "1.5 h", 5400),
        (quantities.duration, "2min", 120),
        (quantities.rate, "2/s", 2),
        (quantities.rate, "30/min", 0.5),
        (quantities.rate, "0.5", 0.5),
        (quantities.share, "5%", 0.05),
        (quantities.share, "0.05", 0.05),
        (quantities.share, "0", 0),
        (quantities.share, "150 %", 1.5),
    ],
)
def test_quantities_as_people_type_them(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value)


def test_a_full_disk_leaves_the_earlier_report(
    tiny_bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "r.json").write_text("the earlier one")
    real = os.fdopen

    def full(descriptor: int, *args: Any, **kwargs: Any) -> Any:
        file = real(descriptor, *args, **kwargs)

        def write(data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        file_like: Any = type("Full", (), {"__enter__": lambda self: self, "__exit__": lambda *_: file.close()})()
        file_like.write = write
        return file_like

    monkeypatch.setattr("vtexport.measure.files.os.fdopen", full)
    given = (*QUICK, "--plan", "prunesid-16", "--quiet", "-o", "r.json")
    code, out, err = call(capsys, "bench", tiny_bundle, *given)
    assert (code, out) == (1, "")
    assert "vtexport: r.json cannot be written (No space left on device)" in err
    assert (tmp_path / "r.json").read_text() == "the earlier one"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "calibrate", known_speed)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", ".r.json.partial"}
    # and the next one, when there is space again, makes a report of what the disk had room for
    code, out, _ = call(capsys, "bench", tiny_bundle, *given)
    assert code == 0
    assert "was killed; what it had measured is in r-" in out


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "vtexport", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_samples(report: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    path = partial_path(report)
    while not path.exists() or path.read_bytes().count(b'"type":"sample"') < 3:
        assert time.monotonic() < deadline, "no samples"
        time.sleep(0.02)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_measurement_keeps_its_samples(tiny_bundle: Path, tmp_path: Path, sent: signal.Signals) -> None:
    report = tmp_path / "r.json"
    given = ("--samples", "100000", *QUICK[2:], "--plan", "prunesid-16", "-o", report)
    with running("bench", tiny_bundle, *given) as process:
        wait_for_samples(report)
        process.send_signal(sent)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"ended early by a signal; what was measured until then is in {report}" in said
    found = read_report(report)
    assert found.interrupted == "a signal"
    assert len(found.samples) >= 3
    assert len(found.plans) == 1
    assert not partial_path(report).exists()


def test_a_killed_measurement_is_found_by_the_next(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    report = tmp_path / "r.json"
    given = ("--samples", "100000", *QUICK[2:], "--plan", "prunesid-16", "-o", report)
    with running("bench", tiny_bundle, *given) as process:
        wait_for_samples(report)
        process.kill()
        process.communicate(timeout=PATIENCE)
    assert not report.exists()
    code, out, _ = call(capsys, "bench", tiny_bundle, *QUICK, "--plan", "prunesid-16", "-o", report)
    assert code == 0
    (kept,) = tmp_path.glob("r-*.json")
    assert f"was killed; what it had measured is in {kept}" in out
    assert len(read_report(kept).samples) >= 3
    assert len(read_report(report).samples) == 4


def test_a_signal_before_the_first_sample_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with running("bench", tiny_bundle, *QUICK, "-o", report) as process:
        assert process.stdout is not None
        # Other tests may measure at the same time, of which it warns first
        assert any("measuring the machine's own speed" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_reports_go_over_when_a_plan_is_added(tiny_checkpoint: Path, bundle_copy: Path, capsys: Any) -> None:
    from vtexport.build import build

    given = (*QUICK, "--plan", "prunesid-16", "--quiet")
    assert call(capsys, "bench", bundle_copy, *given)[0] == 0
    before = (bundle_copy / "reports" / "bench.json").read_bytes()
    build(str(tiny_checkpoint), bundle_copy, keep=[8])
    assert (bundle_copy / "reports" / "bench.json").read_bytes() == before
    assert open_bundle(bundle_copy).verify() == []
