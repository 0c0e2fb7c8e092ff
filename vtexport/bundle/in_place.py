"""A bundle in the checkpoint's own folder: graphs stand beside the weights, and nothing of the checkpoint changes.

Such a folder cannot be exchanged whole, so its files are. What a build writes has a name with its content's hash
(`NAME.vtx-HASH.onnx`), so it never replaces a file that the present manifest names; the manifest is replaced last, in
one step. A crash leaves at most files that no manifest names, and the next writer removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Manifest
from vtexport.bundle.manifest_json import decode, encode
from vtexport.bundle.publish import sync
from vtexport.bundle.reader import check_files
from vtexport.bundle.unfinished import discarded_when_interrupted
from vtexport.errors import BundleError, InputError, UsageError, quoted

UNFINISHED = ".vtx-unfinished-"  # how names of what is being written begin
TEXT_FOLDER = "vtexport"  # below the checkpoint's folder, for files that have the names of the checkpoint's own
_SETTLED = re.compile(r".+\.vtx-[0-9a-f]{12}\.(onnx|json|jinja)")


class InPlace:
    """Writer of a bundle's files into `folder` while it holds that; see `in_place`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def unfinished(self, name: str) -> Path:
        """A path for something that `settle` will name, or that goes when the writer ends."""
        return self.folder / f"{UNFINISHED}{name}"

    def settle(self, path: Path, name: str, below: str = "") -> tuple[str, File]:
        """Gives a finished file its name, in the folder or `below` it; the name as the manifest has it, size and hash.

        `graph.onnx` becomes `graph.vtx-0123456789ab.onnx`.
        """
        path.chmod(0o644)
        sync(path)
        described = File(bytes=path.stat().st_size, sha256=hash_file(path))
        stem, suffix = name.rsplit(".", 1)
        target = self.folder / below / f"{stem}.vtx-{described.sha256[:12]}.{suffix}"
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        sync(target.parent)
        return target.relative_to(self.folder).as_posix(), described

    def publish(self, manifest: Manifest) -> None:
        """Makes `manifest` the folder's, in one step; what only the one before it named goes.

        Raises:
            BundleError: it could not be opened afterwards.
        """
        path = self.unfinished(MANIFEST_NAME)
        path.write_bytes(encode(manifest))
        check_files(self.folder, decode(path.read_bytes(), str(path)))
        path.chmod(0o644)
        sync(path)
        _drop_engines(self.folder)
        path.replace(self.folder / MANIFEST_NAME)
        sync(self.folder)


@contextlib.contextmanager
def in_place(folder: Path) -> Iterator[InPlace]:
    """Holds the real folder `folder` for one writer; what it leaves unnamed by the manifest is removed at the end.

    Raises:
        UsageError: a manifest.json stands there that is not of a bundle in place, or the folder is of the hub's cache.
        InputError: the folder cannot be written, or another process is building in it.
    """
    refuse_to_write(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is building in {folder}; run the command again when it is done"
            ) from error
        read_manifest(folder)
        probe = folder / f"{UNFINISHED}probe"
        try:
            probe.write_bytes(b"")
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}); choose another -o/--output without --link-weights"
            ) from error
        with discarded_when_interrupted(folder, lambda: sweep(folder)):
            try:
                sweep(folder)
                yield InPlace(folder)
            finally:
                sweep(folder)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of the bundle in place, or None where there is none.

    Raises:
        UsageError: a manifest.json stands there that is not of a bundle in place.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as opened:
            manifest = decode(opened.read(MAX_MANIFEST_BYTES + 1), str(path))
    except FileNotFoundError:
        return None
    except (OSError, BundleError) as error:
        raise UsageError(
            f"{path} is not what --link-weights writes ({quoted(error, path)}); move it away, or choose another "
            "-o/--output"
        ) from error
    if "/" in manifest.text.embedding.file:
        raise UsageError(
            f"{path} is of a bundle with weights of its own; move that bundle away, or choose another -o/--output"
        )
    return manifest


def sweep(folder: Path) -> None:
    """Removes what builds wrote into `folder` and its manifest does not name; the checkpoint's files never are that."""
    manifest = read_manifest(folder)
    named = set(manifest.files) if manifest else set()
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for path in [*folder.iterdir(), *(folder / TEXT_FOLDER).glob("*")]:
        if _SETTLED.fullmatch(path.name) and path.relative_to(folder).as_posix() not in named:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or somebody else's things are in it
        (folder / TEXT_FOLDER).rmdir()


def _drop_engines(folder: Path) -> None:
    """Removes engines, which are of the manifest that goes."""
    for record in folder.glob("engines/*/engines.json"):
        shutil.rmtree(record.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / "engines").rmdir()
