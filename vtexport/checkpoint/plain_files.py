"""Entries of a checkpoint's folder that only look like files: a pipe, a device, a link to nothing.

Reading a pipe waits for ever and a device has no end; a link to nothing is no file to transformers, which then answers
without what it should have held.
"""

from __future__ import annotations

import stat
from pathlib import Path

from vtexport.errors import InputError

_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_FOLDERS = (".", "additional_chat_templates", "chat_templates")


def refuse_odd_files(folder: Path) -> None:
    """Refuses small files of a checkpoint that cannot be read to their end.

    Raises:
        InputError: naming the first, or the folder, where it cannot be listed.
    """
    for inside in _FOLDERS:
        try:
            paths = sorted(path for path in (folder / inside).iterdir() if path.name.endswith(_SUFFIXES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(f"{folder / inside} cannot be read ({error.strerror}); check its rights") from error
        for path in paths:
            _refuse_odd_file(path)


def _refuse_odd_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            raise InputError(f"{path} cannot be read ({error.strerror}); check the file and its rights") from error
        raise InputError(
            f"{path} links to a file that is not there ({error.strerror}): a cache was cleaned or a download broke "
            "off; delete the link and fetch the file again"
        ) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a pipe or a device, not a file; fetch the file again")
