"""docs/adding-a-backend.md and docs/adding-a-target.md, followed to the letter in copies of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from followed_page import ROOT, commands, copy_with_files, shell

BACKEND, TARGET = ROOT / "docs" / "adding-a-backend.md", ROOT / "docs" / "adding-a-target.md"


def test_a_backend(tmp_path: Path) -> None:
    copy = copy_with_files(BACKEND, tmp_path / "vtexport")
    (command,) = commands(BACKEND)
    done = shell(copy, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b22 passed", done.stdout), done.stdout  # seven of each runtime
    code = "from vtexport.backends.registry import open_backend; print(type(open_backend('timed')).__name__)"
    assert shell(copy, f'{sys.executable} -c "{code}"').stdout == "TimedBackend\n"
    ruff = Path(sys.executable).parent / "ruff"
    folder = copy / "vtexport" / "backends" / "timed"
    checked = subprocess.run(
        [ruff, "check", "--config", ROOT / "pyproject.toml", folder], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_a_target(tmp_path: Path) -> None:
    copy = copy_with_files(TARGET, tmp_path / "vtexport")
    listed, tested, inspected, compiled = (shell(copy, command) for command in commands(TARGET))
    assert re.search(r"^my-board +yes +tensorrt-rtx", listed.stdout, flags=re.MULTILINE), listed.stdout
    assert tested.returncode == 0, tested.stdout
    assert re.search(r"\b[1-9]\d* passed", tested.stdout)
    for done in (inspected, compiled):
        assert "nothing is not a folder; give the bundle that `vtexport build` wrote" in done.stderr
    (copy / "engines" / "my-board.toml").write_text(
        (copy / "engines" / "my-board.toml").read_text().replace("tensorrt-rtx", "tensorrt")
    )
    refused = shell(copy, "vtexport compile nothing --target my-board")
    assert refused.returncode == 2
    assert "target my-board runs TensorRT engines, which this version of vtexport cannot build" in refused.stderr
    refused = shell(copy, "vtexport build --model mini --target my-board")
    assert refused.returncode == 2
    assert "target my-board runs TensorRT engines, which this version of vtexport cannot build" in refused.stderr
