"""A checkpoint's weights without a copy: reflinks of its files, or its files where they lie.

A reflink (`ioctl_ficlone(2)`; btrfs, XFS, bcachefs, some network file systems) is a file of its own that shares blocks
with another until one of them changes. Where there is none, external data leaves one way: graphs beside the weights.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vtexport.assemble.weights import PlacedWeights, dtype_of, files_of, stored_weight
from vtexport.bundle.hashing import hash_file
from vtexport.dtypes import WEIGHT_DTYPES
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.checkpoint.safetensors_index import TensorEntry

FICLONE = 0x40049409  # linux/fs.h
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EXDEV}


def check_linkable(tensors: Mapping[str, TensorEntry], dtype: str) -> None:
    """Refuses weights that are not stored in the bundle's `dtype`, so that a build would have to write them.

    Raises:
        UsageError: with the checkpoint's type, and the --precision that would link.
    """
    stored = {dtype_of(name, entry): name for name, entry in tensors.items()}
    other = next((each for each in stored if each != dtype), None)
    if other is None:
        return
    if len(stored) > 1:
        what = f"weights in {' and '.join(sorted(stored))} ({stored[other]} is in {other})"
        step = "drop --link-weights"
    else:
        what = f"its weights in {other}"
        step = f"give --precision {WEIGHT_DTYPES[other].precision}"
    raise UsageError(
        f"the checkpoint has {what}, so --precision {WEIGHT_DTYPES[dtype].precision} has to write them anew; {step}"
    )


def reflink_weights(
    tensors: Mapping[str, TensorEntry],
    folder: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> PlacedWeights:
    """Does what `copy_weights` does for tensors that need no conversion, by reflinks; their content is read and hashed.

    Raises:
        UsageError: the file system has no reflinks, or the checkpoint lies on another.
    """
    linked = PlacedWeights({}, {}, {})
    for name, path, entries in files_of(tensors):
        try:
            with path.open("rb") as source, (folder / name).open("wb") as target:
                fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            raise UsageError(_cannot_link(path, folder, error, tensors)) from error
        digest = hash_file(folder / name, progress)
        linked.tensors.update({key: stored_weight(name, entry, entry.offset) for key, entry in entries.items()})
        linked.source_hashes[path.name] = linked.written_hashes[name] = digest
    return linked


def weights_in_place(
    tensors: Mapping[str, TensorEntry], folder: Path, progress: Callable[[int], object] = lambda count: None
) -> PlacedWeights:
    """The weights where they lie, for graphs in the same `folder` (symlinks resolved); read for their hashes only.

    Raises:
        UsageError: a file lies elsewhere or has several names, which loaders refuse.
    """
    found = PlacedWeights({}, {}, {})
    for _, path, entries in files_of(tensors):
        check_loadable(path, folder)
        digest = hash_file(path, progress)
        placed = {key: stored_weight(path.name, entry, entry.offset, beside=True) for key, entry in entries.items()}
        found.tensors.update(placed)
        found.source_hashes[path.name] = found.written_hashes[path.name] = digest
    return found


def check_loadable(path: Path, folder: Path) -> None:
    """Refuses a weight file that loaders would not open beside a graph in `folder`.

    Raises:
        UsageError: it lies outside, behind a symlink, or it is a hard link.
    """
    step = "drop --link-weights, or give a folder that holds the files themselves (cp -rL makes one)"
    if path.parent != folder:
        raise UsageError(
            f"the weights in {folder} are links to {path}, and ONNX Runtime and onnx.checker refuse external data "
            f"behind symlinks that leave the folder; {step}"
        )
    names = path.stat().st_nlink
    if names > 1:
        raise UsageError(
            f"{path} has {names} names (hard links), and onnx.checker and onnx_ir refuse such external data; {step}"
        )


def _cannot_link(path: Path, folder: Path, error: OSError, tensors: Mapping[str, TensorEntry]) -> str:
    size = sum(entry.nbytes for entry in tensors.values())
    amount = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    # Python knows this number by another name than the system call's manual
    code = "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode.get(error.errno or 0, str(error.errno))
    return (
        f"{path} cannot be reflinked to {folder.parent.parent.parent} ({code}), and loaders take external data neither "
        "from absolute paths nor through '..' nor from symlinks that leave the graph's folder, onnx.checker and "
        f"onnx_ir not from hard links either; drop --link-weights to copy {amount}, or give -o {path.parent}, the "
        "checkpoint's own folder"
    )
