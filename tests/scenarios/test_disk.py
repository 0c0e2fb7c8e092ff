"""Disks that are really full or read-only: exit code 1, one sentence, the old bundle as it was, nothing beside it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from warm_builds import Ended, WarmBuilds

STAGES = ("copying", "adding", "writing tokenizer", "exporting", "checking")


@pytest.fixture
def warm(warm_builds: WarmBuilds) -> WarmBuilds:
    if warm_builds.why_no_mounts:
        pytest.skip(warm_builds.why_no_mounts)
    return warm_builds


@pytest.fixture
def disk(warm: WarmBuilds, tmp_path: Path) -> Path:
    """An empty disk of 4 MB, three times what a bundle of the tiny checkpoint takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    warm.mount(folder, "size=4m")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(ended: Ended, what: str) -> None:
    assert ended.code == 1, ended.err
    assert ended.out == ""
    assert ended.sentence.startswith("vtexport: ")
    assert what in ended.sentence
    assert "unexpected" not in ended.sentence
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up(
    warm: WarmBuilds, disk: Path, tiny_checkpoint: Path, tiny_bundle: Path, stage: str
) -> None:
    """Other data takes the last byte when the build begins a stage."""
    adds = stage != "copying"
    if adds:
        shutil.copytree(tiny_bundle, warm.seen(disk) / "b")
    ended = warm.run("build", "--model", tiny_checkpoint, "--keep", 20, "-o", disk / "b", fill=stage, disk=disk)
    assert_refused(ended, f"the disk of {disk} is full; free some space")
    assert names(warm.seen(disk)) == (["b", "other data"] if adds else ["other data"])
    if adds:
        assert hashes(warm.seen(disk) / "b") == hashes(tiny_bundle)
    (warm.seen(disk) / "other data").unlink()
    assert warm.run("build", "--model", tiny_checkpoint, "--keep", 20, "-o", disk / "b").code == 0
    assert warm.run("inspect", disk / "b", "--verify").code == 0


@pytest.mark.parametrize("replaces", [True, False], ids=["replaces", "new"])
def test_a_disk_that_is_too_small(
    warm: WarmBuilds, disk: Path, tiny_checkpoint: Path, tiny_bundle: Path, replaces: bool
) -> None:
    """Said before anything is written; a bundle that is to be replaced stays until the new one is whole."""
    if replaces:
        shutil.copytree(tiny_bundle, warm.seen(disk) / "b")
    warm.mount(disk, "remount,size=2m" if replaces else "remount,size=1m")
    ended = warm.run("build", "--model", tiny_checkpoint, "--keep", 20, "--replace", "-o", disk / "b")
    assert_refused(ended, "MB free and the bundle takes")
    assert "copying" not in ended.err
    assert names(warm.seen(disk)) == (["b"] if replaces else [])
    if replaces:
        assert hashes(warm.seen(disk) / "b") == hashes(tiny_bundle)


def test_room_for_the_weights_alone(warm: WarmBuilds, disk: Path, tiny_checkpoint: Path) -> None:
    """The look ahead counts weights; what else is written can still be too much."""
    weights = (tiny_checkpoint / "model.safetensors").stat().st_size
    warm.mount(disk, f"remount,size={weights + 65536}")
    ended = warm.run("build", "--model", tiny_checkpoint, "--keep", 20, "-o", disk / "b")
    assert_refused(ended, f"the disk of {disk} is full; free some space")
    assert names(warm.seen(disk)) == []


def test_a_read_only_disk(warm: WarmBuilds, disk: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """Which is read-only for root too."""
    shutil.copytree(tiny_bundle, warm.seen(disk) / "b")
    warm.mount(disk, "remount,ro")
    for name in ("b", "new", "new/b"):
        ended = warm.run("build", "--model", tiny_checkpoint, "--keep", 20, "-o", disk / name)
        assert_refused(ended, "cannot be written (Read-only file system); choose another -o/--output")
    assert warm.run("inspect", disk / "b", "--verify").code == 0
    assert names(warm.seen(disk)) == ["b"]
