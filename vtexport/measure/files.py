"""Writing a result's file whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vtexport.errors import InputError


def write_whole(path: Path, data: bytes) -> None:
    """Puts a file in place in one step.

    Raises:
        InputError: the folder cannot be written.
    """
    written: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(written).chmod(0o644)
        Path(written).replace(path)
    except OSError as error:
        if written is not None:
            with contextlib.suppress(OSError):
                Path(written).unlink()
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another -o/--output") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Puts a result in place in one step, keys sorted.

    Raises:
        InputError: the folder cannot be written.
    """
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # stray bytes as JSON's own escapes
