"""A page of docs/ that adds files to the repository, followed to the letter in a copy of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_with_files(page: Path, folder: Path) -> Path:
    """The repository with the files of the page: a path on a line of its own, then a block."""
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")
    for name in ("vtexport", "tests", "tools", "benchmarks", "docs", "engines", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, text in re.findall(
        r"^`([\w/.-]+)`\n\n```\w+\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def shell(copy: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with the copy in place of the installed package."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (copy, copy / "tests" / "support", copy / "tools"))),
    }
    return subprocess.run(command, shell=True, cwd=copy, env=environment, capture_output=True, text=True)
