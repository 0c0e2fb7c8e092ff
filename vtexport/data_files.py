"""Folders that stand beside the package in a checkout and inside it in a wheel: `engines` and `plugins`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder `name`, from the wheel where installed from one, else from the checkout."""
    return _PACKAGE / "data" / name if is_packaged(name) else _PACKAGE.parent / name


def is_packaged(name: str) -> bool:
    """True where the folder came with a wheel."""
    return (_PACKAGE / "data" / name).is_dir()
