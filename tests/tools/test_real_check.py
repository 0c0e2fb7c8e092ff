"""The resumable sequence of checks, with steps that only count how often they ran."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from real_check import Step, run_steps, steps

from vtexport.cli.main import VERBS

COUNT = "import sys; open(sys.argv[1], 'a').write('x'); print('out'); sys.exit(sys.argv[2] if len(sys.argv) > 2 else 0)"


def step(folder: Path, name: str, *needs: str, fails: str = "") -> Step:
    return Step(name, (sys.executable, "-c", COUNT, str(folder / f"{name}.runs"), *([fails] if fails else [])), needs)


def runs(folder: Path, *names: str) -> list[int]:
    files = [folder / f"{name}.runs" for name in names]
    return [len(file.read_text()) if file.exists() else 0 for file in files]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text("one")
    return tmp_path / "manifest.json"


def test_what_is_done_is_not_done_again(tmp_path: Path, manifest: Path) -> None:
    wanted = [step(tmp_path, "a"), step(tmp_path, "b", "a")]
    first = run_steps(wanted, tmp_path / "check", manifest)
    assert first["ok"]
    assert first["complete"]
    assert (tmp_path / "check/steps/a.out").read_text() == "out\n"
    again = run_steps(wanted, tmp_path / "check", manifest)
    assert runs(tmp_path, "a", "b") == [1, 1]
    assert again["ok"]
    assert all(record["resumed"] for record in again["steps"].values())
    assert again["steps"]["a"]["seconds"] == first["steps"]["a"]["seconds"] > 0
    assert json.loads((tmp_path / "check/summary.json").read_text()) == again


def test_another_manifest_or_command_runs_again(tmp_path: Path, manifest: Path) -> None:
    wanted = [step(tmp_path, "a"), step(tmp_path, "b", "a")]
    run_steps(wanted, tmp_path / "check", manifest)
    manifest.write_text("two")
    run_steps(wanted, tmp_path / "check", manifest)
    assert runs(tmp_path, "a", "b") == [2, 2]
    program, option, code, *given = wanted[0].command
    other = [Step("a", (program, option, code + "  # changed", *given)), wanted[1]]
    run_steps(other, tmp_path / "check", manifest)
    assert runs(tmp_path, "a", "b") == [3, 3], "what needs a changed step is run, too"


def test_a_bundle_that_is_gone_is_built_again(tmp_path: Path, manifest: Path) -> None:
    wanted = [Step("a", step(tmp_path, "a").command, builds=True)]
    for _ in range(2):
        run_steps(wanted, tmp_path / "check", manifest)
    assert runs(tmp_path, "a") == [1]
    manifest.unlink()
    run_steps(wanted, tmp_path / "check", manifest)
    assert runs(tmp_path, "a") == [2]


def test_a_failure_is_said_and_run_again(tmp_path: Path, manifest: Path) -> None:
    wanted = [step(tmp_path, "a"), step(tmp_path, "b", fails="it broke"), step(tmp_path, "c", "b"), step(tmp_path, "d")]
    found = run_steps(wanted, tmp_path / "check", manifest)
    assert not found["ok"]
    assert found["complete"]
    assert (found["steps"]["b"]["exit_code"], found["steps"]["b"]["stderr"]) == (1, "it broke")
    assert found["steps"]["c"]["exit_code"] is None
    assert found["steps"]["c"]["stderr"] == "not run: the step b failed"
    assert not (tmp_path / "check/steps/b.done.json").exists()
    run_steps(wanted, tmp_path / "check", manifest)
    assert runs(tmp_path, "a", "b", "c", "d") == [1, 2, 0, 1]


def test_an_interruption_leaves_what_was_done(tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [step(tmp_path, "a"), step(tmp_path, "b")]
    real = __import__("subprocess").run

    def interrupted(command: tuple[str, ...], **options: object) -> object:
        if command == wanted[1].command:
            raise KeyboardInterrupt
        return real(command, **options)

    with monkeypatch.context() as patched:
        patched.setattr("real_check.subprocess.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_steps(wanted, tmp_path / "check", manifest)
    half = json.loads((tmp_path / "check/summary.json").read_text())
    assert not half["complete"]
    assert not half["ok"]
    assert list(half["steps"]) == ["a"]
    (tmp_path / "check/steps/a.done.json").write_text("{")  # as a full disk would leave it
    assert run_steps(wanted, tmp_path / "check", manifest)["ok"]
    assert runs(tmp_path, "a", "b") == [2, 1]


def test_a_step_that_reads_results_is_run_again_with_them(tmp_path: Path, manifest: Path) -> None:
    """A report of a measurement that failed is made, and made anew once the measurement is there."""
    wanted = [step(tmp_path, "a", fails="3"), replace(step(tmp_path, "b"), reads=("a",))]
    assert not run_steps(wanted, tmp_path / "check", manifest)["ok"]
    assert runs(tmp_path, "a", "b") == [1, 1]
    wanted[0] = step(tmp_path, "a")
    assert run_steps(wanted, tmp_path / "check", manifest)["ok"]
    assert run_steps(wanted, tmp_path / "check", manifest)["ok"]
    assert runs(tmp_path, "a", "b") == [2, 2]


def test_a_verb_that_is_not_there_is_a_failure(tmp_path: Path, manifest: Path) -> None:
    found = run_steps([Step("x", (sys.executable, "-m", "vtexport", "no-verb"))], tmp_path / "check", manifest)
    assert not found["ok"]
    assert found["steps"]["x"]["exit_code"] == 2
    assert "invalid choice: 'no-verb'" in found["steps"]["x"]["stderr"]


def test_steps_need_earlier_ones_and_none_is_left_out(tmp_path: Path) -> None:
    """Whatever this version has: an absent verb is to fail and not to be missing."""
    planned = steps("mini", "prunesid", "64", "fp32", tmp_path)
    names = [each.name for each in planned]
    assert {"build", "prove", "validate", "bench", "eval", "report"} <= set(names)
    for number, each in enumerate(planned):
        assert set(each.needs) <= set(names[:number])
    assert {"build", "inspect", "eval"} <= set(VERBS) & {each.command[3] for each in planned}
