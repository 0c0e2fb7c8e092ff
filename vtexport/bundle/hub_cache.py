"""The cache of the Hugging Face hub, where a bundle's files are links: what is read there, and that nothing is written.

`huggingface_hub.snapshot_download` keeps a repository as

    models--OWNER--NAME/
      blobs/HASH                               the files themselves
      snapshots/REVISION/onnx/graph.onnx       -> ../../../blobs/HASH

Everything in it belongs to huggingface_hub and is shared by the revisions of a repository, so vtexport writes nowhere
in it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from vtexport.errors import UsageError

_REPOSITORY = re.compile(r"(models|datasets|spaces|kernels)--.+")


def repository_of(path: Path) -> Path | None:
    """The cached repository that `path` lies in, links resolved; None where it lies in none."""
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if _REPOSITORY.fullmatch(folder.name) and (folder / "snapshots").is_dir() and (folder / "blobs").is_dir():
            return folder
    return None


def leads_out(file: Path, folder: Path) -> bool:
    """True where `file` of the bundle `folder` lies elsewhere, by a link.

    A link as huggingface_hub makes it, from a snapshot to a file among the blobs of the same repository, is none that
    leads out.
    """
    inside = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(file))
    return not real.is_relative_to(inside) and not _is_own_blob(file, real, inside)


def _is_own_blob(file: Path, real: Path, inside: Path) -> bool:
    """True where `file` is one plain link `../../blobs/HASH`, without a further link on the way."""
    repository = repository_of(inside)
    beside = Path(os.path.realpath(file.parent))
    if repository is None or not inside.is_relative_to(repository / "snapshots") or not beside.is_relative_to(inside):
        return False
    try:
        # What the link itself says, so that no link behind it can lead on: `real` has every one resolved.
        target = os.readlink(file)  # noqa: PTH115 (Path.readlink would tidy it)
        is_plain = stat.S_ISREG(os.lstat(repository / "blobs" / real.name).st_mode)
    except OSError:
        return False
    return is_plain and real.parent == repository / "blobs" and target == os.path.relpath(real, beside)


def refuse_to_write(path: Path) -> None:
    """Refuses a place to write to that lies in the hub's cache.

    Raises:
        UsageError: it does.
    """
    repository = repository_of(path)
    if repository is not None:
        raise UsageError(
            f"{path} lies in the Hugging Face cache ({repository.name}), where vtexport writes nothing; copy the "
            "bundle to a folder of your own (cp -rL, or hf download with --local-dir) or choose another -o/--output"
        )
