from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing a test writes lands in the user's cache."""
    cache = tmp_path / "default-cache"
    monkeypatch.setenv("VTEXPORT_CACHE", str(cache))
    return cache


@pytest.fixture
def saved_folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, in the layout of transformers 5, that the test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Merge values into a JSON file; None deletes an entry."""

    def edit(path: Path, **changes: Any) -> None:
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return edit
