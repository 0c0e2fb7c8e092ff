"""Builds that are killed: the old bundle or the new one stands, never half, and the next build leaves no litter."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtexport.build import build
from vtexport.bundle.reader import open_bundle

# A build of the tiny checkpoint takes some seconds, most of them in imports and the exporter.
MOMENTS = sorted(random.Random(2).uniform(0.5, 9.0) for _ in range(5))


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment:.1f}s")
def test_killed_at_any_moment(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, moment: float) -> None:
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "work" / "b"))
    before = (target / "manifest.json").read_bytes()
    command = [
        sys.executable,
        "-m",
        "vtexport",
        "build",
        "--model",
        str(tiny_checkpoint),
        "--keep",
        "20",
        "-o",
        str(target),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    after = open_bundle(target)
    assert after.verify() == []
    finished = "prunesid-20" in [plan.name for plan in after.manifest.plans]
    assert finished or (target / "manifest.json").read_bytes() == before
    build(str(tiny_checkpoint), target, keep=24)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["b"]
    assert open_bundle(target).verify() == []


def test_a_checkpoint_that_vanishes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Between the look at its headers and the copy; one sentence, and the folder is as before."""
    from vtexport.build import Report
    from vtexport.errors import InputError

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))

    def stage(text: str) -> None:
        if text.startswith("copying"):
            shutil.rmtree(folder)

    with pytest.raises((InputError, OSError), match=r"model.safetensors"):
        build(str(folder), tmp_path / "out" / "b", keep=16, report=Report(stage=stage))
    assert list((tmp_path / "out").iterdir()) == []
