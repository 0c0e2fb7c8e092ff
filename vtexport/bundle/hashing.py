"""The SHA-256 of files, for both wings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_CHUNK = 8 * 2**20  # bytes


def hash_file(path: Path, progress: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of a file, read in chunks; `progress` is called with each count of bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()
