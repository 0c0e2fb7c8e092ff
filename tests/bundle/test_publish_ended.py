"""A writer that is ended before any of its steps: by SIGKILL, and by signals that are handled."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtexport.bundle.manifest import MANIFEST_NAME
from vtexport.bundle.publish import recover, staged

# For each step k = 1, 2, ... of writing a bundle (whatever Python's audit events tell of files and folders) a child is
# forked that ends itself before that step; the last child reaches no such step and ends well.
_WRITERS = """
import os, signal, sys
from pathlib import Path
from vtexport.bundle import publish
from vtexport.cli.main import interrupt

base, sent, exchange, replaces = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4] == "True"

def write(destination, text):
    with publish.staged(destination) as folder:
        (folder / "manifest.json").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_text(text)

def end_before(step):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.", "ctypes.")):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), sent)
    sys.addaudithook(hook)

if not exchange:
    publish._rename_exchange = lambda first, second: False
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, interrupt)
step, code = 0, None
while code != 0:
    step += 1
    folder = base / str(step)
    folder.mkdir()
    if replaces:
        write(folder / "b", "old")
    child = os.fork()
    if child == 0:
        end_before(step)
        write(folder / "b", "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code)
"""


def ended_writers(base: Path, sent: signal.Signals, exchange: bool, replaces: bool) -> tuple[list[int], list[Path]]:
    """Exit codes and folders of writers that ended before their first step, their second, and so on."""
    command = [sys.executable, "-c", _WRITERS, str(base), str(int(sent)), str(exchange), str(replaces)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    codes = [int(line) for line in shown.stdout.split()]
    assert len(codes) > 15, "a writer takes more steps than that"
    return codes, [base / str(step) for step in range(1, len(codes) + 1)]


def content(folder: Path) -> str | None:
    """What both files of the bundle hold, None where there is no bundle; they never differ."""
    destination = folder / "b"
    if not destination.exists():
        return None
    found = {(destination / name).read_text() for name in (MANIFEST_NAME, "sub/data")}
    assert len(found) == 1, f"half a bundle in {folder}"
    return found.pop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanges", "moves aside"])
@pytest.mark.parametrize("replaces", [True, False], ids=["replaces", "new"])
def test_killed_before_any_step(tmp_path: Path, exchange: bool, replaces: bool) -> None:
    codes, folders = ended_writers(tmp_path, signal.SIGKILL, exchange, replaces)
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    found = []
    for folder in folders:
        recover(folder / "b")  # what opening does first
        found.append(content(folder))
        with staged(folder / "b") as staging:
            (staging / MANIFEST_NAME).write_text("next")
        assert names(folder) == ["b"], "the next writer leaves no litter"
    before = "old" if replaces else None
    published = found.index("new")
    assert found == [before] * published + ["new"] * (len(found) - published)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchanges", "moves aside"])
@pytest.mark.parametrize("replaces", [True, False], ids=["replaces", "new"])
def testinterrupted_before_any_step(tmp_path: Path, sent: signal.Signals, exchange: bool, replaces: bool) -> None:
    """Nothing needs to be put right afterwards: no litter, and the bundle in its place."""
    codes, folders = ended_writers(tmp_path, sent, exchange, replaces)
    assert codes == [130] * (len(codes) - 1) + [0]
    found = [content(folder) for folder in folders]
    before = "old" if replaces else None
    published = found.index("new")
    assert found == [before] * published + ["new"] * (len(found) - published)
    for folder, holds in zip(folders, found, strict=True):
        assert names(folder) == (["b"] if holds else [])
