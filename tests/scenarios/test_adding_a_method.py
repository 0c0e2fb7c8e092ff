"""docs/adding-a-method.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-method.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the page's file in it."""
    folder = tmp_path_factory.mktemp("copy") / "vtexport"
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")
    for name in ("vtexport", "tests", "tools", "benchmarks", "docs", "engines", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (path,) = re.findall(r"^`(vtexport/pruning/methods/\w+\.py)`", PAGE.read_text(), flags=re.MULTILINE)
    (folder / path).write_text(blocks("python")[0])
    return folder


def shell(copy: Path, mini_cache: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with the copy in place of the installed package."""
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (copy, copy / "tests" / "support", copy / "tools"))),
        "VTEXPORT_CACHE": str(mini_cache),
    }
    return subprocess.run(command, shell=True, cwd=copy, env=environment, capture_output=True, text=True)


def test_the_pages_commands(copy: Path, mini_cache: Path) -> None:
    (commands,) = blocks("sh")
    for command in commands.splitlines():
        done = shell(copy, mini_cache, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("pytest"):
            assert re.search(r"\b[1-9]\d* passed", done.stdout), "nothing was tested"
            assert "skipped" not in done.stdout
        if command == "vtexport list methods":
            assert re.search(r"^largest_norm$", done.stdout, flags=re.MULTILINE)
        if command.startswith("vtexport show"):
            assert "64 of 576 patches kept" in done.stdout
    assert (copy / "kept.jpg").stat().st_size > 1000


def test_the_pages_pytorch(copy: Path, mini_cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.pruning.test_eager import inputs as made\n"
        "from tiny_llava import make_config, make_model\nmodel, inputs = make_model(make_config()), made()\n"
        + blocks("python")[1].replace("keep=64", "keep=16").replace("max_new_tokens=64", "max_new_tokens=4")
        + "assert tokens.shape[1] - inputs['input_ids'].shape[1] == 4\n"
    )
    done = shell(copy, mini_cache, f"{sys.executable} {script}")
    assert done.returncode == 0, done.stderr


def test_the_page_passes_the_linter(tmp_path: Path) -> None:
    written: Any = tmp_path / "largest_norm.py"
    written.write_text(blocks("python")[0])
    ruff = Path(sys.executable).parent / "ruff"
    done = subprocess.run([ruff, "check", "--config", ROOT / "pyproject.toml", written], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
