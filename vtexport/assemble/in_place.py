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
from collections.abc import Iterable, Iterator
from pathlib import Path

from vtexport.assemble.describe import describe_own_files
from vtexport.assemble.earlier import checked, find_earlier, tell_of_engines
from vtexport.assemble.link import weights_in_place
from vtexport.assemble.progress import BuildProgress
from vtexport.assemble.weights import PlacedWeights
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Manifest, Source
from vtexport.bundle.manifest_json import decode, encode
from vtexport.bundle.proof import FOLDER as PROOF_FOLDER
from vtexport.bundle.proof import carry_proof
from vtexport.bundle.publish import sync
from vtexport.bundle.reader import Bundle, check_files
from vtexport.bundle.unfinished import discarded_when_interrupted
from vtexport.checkpoint.resolve import Checkpoint
from vtexport.errors import BundleError, InputError, UsageError, quoted
from vtexport.processing.text import TextFiles

UNFINISHED = ".vtx-unfinished-"  # how names of what is being written begin
TEXT_FOLDER = "vtexport"  # below the checkpoint's folder, for files that have the names of the checkpoint's own
_SETTLED = re.compile(r".+\.vtx-[0-9a-f]{12}\.(onnx|json|jinja)")


class InPlace:
    """Writer of a bundle's files into `folder` while `in_place` holds that (see `assemble.writer.Writer`)."""

    graphs_prefix = UNFINISHED
    weights_prefix = ""

    def __init__(self, folder: Path, earlier: Bundle | None, report: BuildProgress):
        self.name, self.earlier = folder.name, earlier
        self.graphs = self.weights_base = folder
        self.texts = folder / f"{UNFINISHED}text"
        self._folder, self._report = folder, report
        self._settled: dict[str, File] = {}
        self._taken_over: dict[str, File] = {}

    def place_weights(self, checkpoint: Checkpoint, dtype: str) -> PlacedWeights:
        """Reads the weights for their hashes; they stay where they are."""
        total = sum(path.stat().st_size for path in checkpoint.weight_files)
        self._report.stage(f"reading {total / 1e6:,.1f} MB of weights for their hashes; they stay where they are")
        with self._report.bytes_done("weights", total) as progress:
            return weights_in_place(checkpoint.tensors, self._folder, progress)

    def put_texts(self, files: TextFiles, checkpoint: Path) -> None:
        """Writes tokenizer and chat template; the checkpoint's settings are there."""
        self.texts.mkdir()
        files.write(self.texts)

    def take_over(self, graphs: Iterable[str]) -> None:
        """Reads these graphs of the earlier bundle; they stay where they are."""
        if self.earlier is not None:
            self._taken_over = checked(self.earlier, graphs)

    def settle(self, path: Path) -> str:
        """Gives the file a name that the present manifest has for no other content, and returns it.

        `graph.onnx` becomes `graph.vtx-0123456789ab.onnx`, and `tokenizer.json`, which is a name of the checkpoint's,
        `vtexport/tokenizer.vtx-0123456789ab.json`.
        """
        path.chmod(0o644)
        sync(path)
        described = File(bytes=path.stat().st_size, sha256=hash_file(path))
        stem, suffix = path.name.removeprefix(UNFINISHED).rsplit(".", 1)
        below = self._folder / TEXT_FOLDER if path.parent == self.texts else self._folder
        target = below / f"{stem}.vtx-{described.sha256[:12]}.{suffix}"
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        sync(target.parent)
        name = target.relative_to(self._folder).as_posix()
        self._settled[name] = described
        return name

    def describe(self, source: Source) -> dict[str, File]:
        """Size and hash of the checkpoint's files and of those that have settled beside them."""
        return describe_own_files(self._folder, source) | self._settled | self._taken_over

    def publish(self, manifest: Manifest) -> None:
        """Makes `manifest` the folder's, in one step; what only the one before it named goes.

        Raises:
            BundleError: it could not be opened afterwards.
        """
        path = self._folder / f"{UNFINISHED}{MANIFEST_NAME}"
        path.write_bytes(encode(manifest))
        check_files(self._folder, decode(path.read_bytes(), str(path)))
        path.chmod(0o644)
        sync(path)
        _drop_engines(self._folder)
        path.replace(self._folder / MANIFEST_NAME)
        sync(self._folder)
        if self.earlier is None:
            shutil.rmtree(self._folder / PROOF_FOLDER, ignore_errors=True)
        else:
            carry_proof(self._folder, self._folder, manifest, self._report.note)


@contextlib.contextmanager
def in_place(folder: Path, *, replace: bool, report: BuildProgress) -> Iterator[InPlace]:
    """Holds the real folder `folder` for one writer; what it leaves unnamed by the manifest is removed at the end.

    Raises:
        UsageError: a manifest.json stands there that is not of a bundle in place, or one that cannot be opened and
            `replace` does not say that it may go; or the folder is of the hub's cache.
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
                earlier = find_earlier(folder, replace=replace)
                tell_of_engines(folder, report.note)
                yield InPlace(folder, earlier, report)
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
