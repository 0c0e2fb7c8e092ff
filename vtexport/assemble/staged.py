"""A bundle in a hidden folder of its own, which takes the place of what stands at the destination when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vtexport.assemble.describe import describe_files
from vtexport.assemble.earlier import (
    carry_adaptations,
    carry_reports,
    find_earlier,
    linked,
    tell_of_engines,
    unchanged,
    weights_of,
)
from vtexport.assemble.link import reflink_weights
from vtexport.assemble.progress import BuildProgress
from vtexport.assemble.weights import PlacedWeights, copy_weights, planned_bytes
from vtexport.bundle.manifest import MANIFEST_NAME, File, Manifest, Source
from vtexport.bundle.manifest_json import encode
from vtexport.bundle.proof import carry_proof
from vtexport.bundle.publish import check_destination, staged
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.resolve import Checkpoint
from vtexport.errors import InputError
from vtexport.processing.text import TextFiles, copy_settings

GRAPHS_FOLDER = "onnx"


class Staged:
    """Writer of a bundle into the folder `folder`, which `staged_bundle` exchanges (see `assemble.writer.Writer`)."""

    graphs_prefix = ""
    weights_prefix = f"{GRAPHS_FOLDER}/weights/"

    def __init__(self, folder: Path, name: str, earlier: Bundle | None, *, link_weights: bool, report: BuildProgress):
        self.name, self.earlier = name, earlier
        self.graphs, self.texts = folder / GRAPHS_FOLDER, folder
        # An earlier bundle's weights come here with `take_over` alone: until then no file has a second name.
        self.weights_base = (earlier.folder if earlier else folder) / GRAPHS_FOLDER
        self._folder, self._link_weights, self._report = folder, link_weights, report
        self._hashes: dict[str, str] = {}  # of files whose hashes need not be taken again, by name

    def place_weights(self, checkpoint: Checkpoint, dtype: str) -> PlacedWeights:
        """Takes the weights of the earlier bundle, reflinks or copies the checkpoint's."""
        folder = self._folder / self.weights_prefix
        folder.mkdir(parents=True)
        total = sum(path.stat().st_size for path in checkpoint.weight_files)
        size = f"{total / 1e6:,.1f} MB of weights"
        if self.earlier is not None:
            stage = f"adding to {self.earlier.folder}; comparing {size} with those it was made of"
            place = partial(weights_of, self.earlier, self.weights_prefix, checkpoint)
        elif self._link_weights:
            stage = f"linking {size}, and reading them for their hashes"
            place = partial(reflink_weights, checkpoint.tensors, folder)
        else:
            stage = f"copying {size}"
            place = partial(copy_weights, checkpoint.tensors, folder, dtype)
        self._report.stage(stage)
        with self._report.bytes_done("weights", total) as progress:
            placed = place(progress)
        self._hashes = {self.weights_prefix + name: digest for name, digest in placed.written_hashes.items()}
        return placed

    def put_texts(self, files: TextFiles, checkpoint: Path) -> None:
        """Writes tokenizer and chat template, and copies the checkpoint's settings."""
        files.write(self.texts)
        copy_settings(checkpoint, self.texts)

    def take_over(self, graphs: Iterable[str]) -> None:
        """Links these graphs, and the weights, of the earlier bundle."""
        if self.earlier is not None:
            self._hashes |= linked(self.earlier, [*self._hashes, *graphs], self._folder)

    def settle(self, path: Path) -> str:
        """Returns the file's name; it is where it stays."""
        return path.relative_to(self._folder).as_posix()

    def describe(self, source: Source) -> dict[str, File]:
        """Size and hash of every file in the folder; none of them is the checkpoint's own."""
        return describe_files(self._folder, self._hashes)

    def publish(self, manifest: Manifest) -> None:
        """Makes the folder a bundle, which is in place when the block of `staged_bundle` ends."""
        (self._folder / MANIFEST_NAME).write_bytes(encode(manifest))
        if self.earlier is not None:
            carry_adaptations(self.earlier, self._folder, manifest, self._report.note)
            carry_reports(self.earlier, self._folder)
            carry_proof(self.earlier.folder, self._folder, manifest, self._report.note)
        open_bundle(self._folder)


@contextmanager
def staged_bundle(
    destination: Path, checkpoint: Checkpoint, dtype: str, *, link_weights: bool, replace: bool, report: BuildProgress
) -> Iterator[Staged]:
    """A writer beside `destination`; what it has published takes that place when the block ends.

    Raises:
        UsageError: something else than a bundle stands there, or a bundle that cannot be opened.
        InputError: it cannot be written, the disk is too small, or another build has changed the bundle meanwhile.
    """
    check_destination(destination)
    is_unchanged = unchanged(destination)
    earlier = find_earlier(destination, replace=replace)
    tell_of_engines(destination, report.note)
    if earlier is None and not link_weights:
        _check_space(checkpoint, destination, dtype)
    with staged(destination, before_exchange=None if replace else is_unchanged) as folder:
        yield Staged(folder, destination.name, earlier, link_weights=link_weights, report=report)


def _check_space(checkpoint: Checkpoint, destination: Path, dtype: str) -> None:
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    needed = planned_bytes(checkpoint.tensors, dtype)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{existing} has {free / 1e6:,.0f} MB free and the bundle takes {needed / 1e6:,.0f} MB; "
            "choose another -o/--output"
        )
