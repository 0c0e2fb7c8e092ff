"""Builds that end before their end: the old bundle or the new one stands, never half, and no litter stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from warm_builds import WarmBuilds

from vtexport.build import BuildProgress, build
from vtexport.bundle.reader import open_bundle
from vtexport.errors import InputError, VtexportError

pytestmark = pytest.mark.long

KILLED, INTERRUPTED = 20, 6  # builds, half of them into an existing bundle


@pytest.fixture(scope="module")
def span(
    warm_builds: WarmBuilds, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> float:
    """Seconds that a build takes here, the faster of two."""
    taken = []
    for _ in range(2):
        target = tmp_path_factory.mktemp("span") / "b"
        started = time.monotonic()
        assert warm_builds.run("build", "--model", tiny_checkpoint, "--keep", 20, "-o", target).code == 0
        taken.append(time.monotonic() - started)
    return min(taken)


def moments(count: int, span: float, seed: int) -> list[float]:
    """Random, one in each of `count` equal parts of the span."""
    draw = random.Random(seed).random
    return [(part + draw()) / count * span for part in range(count)]


def stop_at(warm: WarmBuilds, moment: float, sent: signal.Signals, checkpoint: Path, target: Path) -> tuple[int, str]:
    """Exit code and last line of a build that gets a signal, as its whole process group does, after so many seconds."""
    group = warm.start("build", "--model", checkpoint, "--keep", 20, "-o", target)
    time.sleep(moment)
    os.killpg(group, sent)
    ended = warm.wait()
    return ended.code, ended.sentence


def plans(target: Path) -> list[str]:
    """The plans of a bundle that opens and whose every hash is right; none where there is no bundle."""
    if not target.exists():
        return []
    bundle = open_bundle(target)
    assert bundle.verify() == []
    return [plan.name for plan in bundle.manifest.plans]


@pytest.mark.parametrize("adds", [True, False], ids=["adds a plan", "new bundle"])
def test_killed_at_any_moment(
    warm_builds: WarmBuilds, span: float, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, adds: bool
) -> None:
    target, before, finished = tmp_path / "work" / "b", [], 0
    target.parent.mkdir()
    for moment in moments(KILLED // 2, span, seed=2):
        if adds:
            shutil.copytree(tiny_bundle, target)
            before = plans(target)
        stop_at(warm_builds, moment, signal.SIGKILL, tiny_checkpoint, target)
        found = plans(target)
        assert found in (before, [*before, "prunesid-20"])
        finished += found != before

        # The next run removes the litter as it begins, whatever becomes of it.
        def give_up(text: str) -> None:
            if text.startswith(("copying", "adding")):
                raise InterruptedError

        with pytest.raises(InterruptedError):
            build(str(tiny_checkpoint), target, keep=24, report=BuildProgress(stage=give_up))
        assert plans(target) == found
        assert [path.name for path in target.parent.iterdir()] == (["b"] if found else [])
        shutil.rmtree(target, ignore_errors=True)
    assert finished < KILLED // 2, "some should have been killed before the end"


def test_a_run_after_a_kill_finishes(
    warm_builds: WarmBuilds, span: float, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    for part in (0.7, 0.5, 0.3, 0.1):  # a build may be quicker now than when the span was measured
        target = Path(shutil.copytree(tiny_bundle, tmp_path / f"work-{part}" / "b"))
        if stop_at(warm_builds, part * span, signal.SIGKILL, tiny_checkpoint, target)[0] == -signal.SIGKILL:
            break
    else:
        pytest.fail("every build ended before it was killed")
    assert warm_builds.run("build", "--model", tiny_checkpoint, "--keep", 24, "-o", target).code == 0
    assert plans(target)[-1] == "prunesid-24"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_the_plain_command_killed(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """A process as a user starts it, with everything in it, as soon as it has begun to write."""
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "work" / "b"))
    command = [sys.executable, "-m", "vtexport", "build", "--model", str(tiny_checkpoint), "--keep", "20"]
    process = subprocess.Popen([*command, "-o", str(target)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(target.parent.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert len(list(target.parent.iterdir())) == 2, "a hidden folder is left for the next run"
    assert plans(target) == ["prunesid-16", "prunesid-32"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_any_moment(
    warm_builds: WarmBuilds,
    span: float,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    sent: signal.Signals,
) -> None:
    """Exit code 130, the old bundle, and nothing else at once: no next run is needed."""
    target, codes = tmp_path / "work" / "b", []
    # from when the handlers are surely in place to just before the end
    for number, part in enumerate(moments(INTERRUPTED, 0.8, seed=sent)):
        if number % 2:
            shutil.copytree(tiny_bundle, target)
        target.parent.mkdir(exist_ok=True)
        before = plans(target)
        code, said = stop_at(warm_builds, (0.1 + part) * span, sent, tiny_checkpoint, target)
        codes.append(code)
        if code == 0:  # it was faster than the one measured
            assert plans(target) == [*before, "prunesid-20"]
        else:
            assert (code, plans(target) in (before, [*before, "prunesid-20"])) == (130, True)
            assert said.startswith("vtexport: interrupted")
        assert [path.name for path in target.parent.iterdir()] == (["b"] if plans(target) else [])
        shutil.rmtree(target, ignore_errors=True)
    assert codes.count(130) >= INTERRUPTED // 2


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vision tower's export takes seconds and reads nothing of the checkpoint; these builds end before it."""
    from vtexport.export.graphs import GraphExporter

    def refuse(*_: Any) -> None:
        raise AssertionError("the build went on to the export")

    monkeypatch.setattr(GraphExporter, "_vision", refuse)


def at_stage(name: str, action: Any) -> BuildProgress:
    """A report that does something when the build says that it begins a stage."""

    def stage(text: str) -> None:
        if text.startswith(name):
            action()

    return BuildProgress(stage=stage)


@pytest.mark.parametrize("stage", ["copying", "adding"])
def test_a_checkpoint_that_vanishes(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, stage: str) -> None:
    """Between the look at its headers and the reading of its weights; one sentence, and all is as before."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    target = tmp_path / "out" / "b"
    if stage == "adding":
        shutil.copytree(tiny_bundle, target)
    with pytest.raises(InputError, match=r"model.safetensors vanished .*restore the checkpoint and build again"):
        build(str(folder), target, keep=20, report=at_stage(stage, lambda: shutil.rmtree(folder)))
    assert plans(target) == (["prunesid-16", "prunesid-32"] if stage == "adding" else [])
    assert [path.name for path in target.parent.iterdir()] == (["b"] if stage == "adding" else [])


@pytest.mark.parametrize("vanishes", [None, "tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_checkpoint_that_vanishes_after_the_copy(
    tiny_checkpoint: Path, tmp_path: Path, vanishes: str | None, no_export: None
) -> None:
    """The whole folder, or a file of it."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))

    def vanish() -> None:
        if vanishes is None:
            shutil.rmtree(folder)
        else:
            (folder / vanishes).unlink()

    (tmp_path / "out").mkdir()
    with pytest.raises(InputError) as caught:
        build(str(folder), tmp_path / "out" / "b", keep=16, report=at_stage("writing tokenizer", vanish))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_checkpoint_that_vanishes_once_it_has_been_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Nothing of it is needed any more but to compare the tower's features with PyTorch's."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    report = at_stage("exporting", lambda: shutil.rmtree(folder))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors vanished while it was read"):
        build(str(folder), tmp_path / "out" / "b", method="none", report=report)
    assert list((tmp_path / "out").iterdir()) == []
    shutil.copytree(tiny_checkpoint, folder)
    bundle = build(str(folder), tmp_path / "b", method="none", report=report, check=False)
    assert bundle.verify() == []
    assert {"config.json", "model.safetensors"} <= set(bundle.manifest.source.files)


@pytest.mark.parametrize("precision", ["fp32", "fp16"], ids=["copied", "converted"])
@pytest.mark.parametrize("change", ["shorter", "longer", "other"])
def test_weights_that_change_while_they_are_copied(
    tiny_checkpoint: Path, tmp_path: Path, precision: str, change: str, no_export: None
) -> None:
    """Tensors are found by the headers that were read at first: bytes that came later would be taken for others."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    weights = folder / "model.safetensors"

    def replace() -> None:
        data = weights.read_bytes()
        data = {"shorter": data[:-100], "longer": data + b"x", "other": b"\xff" * 8 + data[8:]}[change]
        weights.write_bytes(data)

    (tmp_path / "out").mkdir()
    with pytest.raises(VtexportError, match=r"model.safetensors changed while it was copied; restore the checkpoint"):
        build(str(folder), tmp_path / "out" / "b", keep=16, precision=precision, report=at_stage("copying", replace))
    assert list((tmp_path / "out").iterdir()) == []
