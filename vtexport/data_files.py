"""Folders that stand beside the package in a checkout and inside it in a wheel: `engines` and `plugins`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder `name`, from the wheel where installed from one, else from the checkout."""
    packaged = _PACKAGE / "data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
