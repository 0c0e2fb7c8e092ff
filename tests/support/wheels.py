"""The package's wheel, built from a copy of its files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from environments import ROOT, run


def build_wheel(folder: Path) -> Path:
    """A wheel in `folder`, built from a copy, so that nothing of the working tree but its files can get in."""
    tracked = ["pyproject.toml", "README.md", "LICENSE", "vtexport", "engines", "plugins", "namespaces"]
    for name in tracked:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(folder / "source")], folder)
    return next(folder.glob("*.whl"))
