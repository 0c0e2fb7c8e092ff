"""Writers: the two forms in which a bundle's files come about, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from vtexport.assemble.in_place import in_place
from vtexport.assemble.link import check_linkable
from vtexport.assemble.progress import BuildProgress
from vtexport.assemble.staged import staged_bundle
from vtexport.assemble.weights import PlacedWeights
from vtexport.bundle.manifest import File, Manifest, Source
from vtexport.bundle.reader import Bundle
from vtexport.checkpoint.resolve import Checkpoint
from vtexport.processing.text import TextFiles


class Writer(Protocol):
    """The files of one bundle while they are written; `publish` makes a bundle of them.

    Calls come in the order in which they stand here. What was written goes when an exception ends the writer's block.
    """

    @property
    def name(self) -> str:
        """The bundle's name in its manifest."""

    @property
    def earlier(self) -> Bundle | None:
        """The bundle whose other plans this one takes over."""

    @property
    def graphs(self) -> Path:
        """The folder for graph files."""

    @property
    def graphs_prefix(self) -> str:
        """Beginning of the graph files' names until `settle` gives them those that stay."""

    @property
    def texts(self) -> Path:
        """The folder that `put_texts` puts tokenizer.json and chat_template.jinja into."""

    @property
    def weights_base(self) -> Path:
        """The folder that weights are named from in graphs, where their bytes can be read while graphs are written."""

    @property
    def weights_prefix(self) -> str:
        """Beginning of the weight files' names in the manifest."""

    def place_weights(self, checkpoint: Checkpoint, dtype: str) -> PlacedWeights:
        """Makes the checkpoint's weights files of the bundle, in `dtype`."""

    def put_texts(self, files: TextFiles, checkpoint: Path) -> None:
        """Writes tokenizer and chat template; other settings of the folder `checkpoint` come along."""

    def take_over(self, graphs: Iterable[str]) -> None:
        """Makes these graph files of the earlier bundle files of this one, too, once they are seen to be whole."""

    def settle(self, path: Path) -> str:
        """Gives a finished file of `graphs` or `texts` the name that it keeps, and returns that as the manifest's."""

    def describe(self, source: Source) -> dict[str, File]:
        """Size and hash of every file of the bundle, by name; `source` has the hashes of the checkpoint's own."""

    def publish(self, manifest: Manifest) -> None:
        """Puts the bundle in place with this manifest, at the latest when the writer's block ends.

        Raises:
            BundleError: it could not be opened afterwards.
        """


@contextmanager
def open_writer(
    destination: Path, checkpoint: Checkpoint, dtype: str, *, link_weights: bool, replace: bool, report: BuildProgress
) -> Iterator[Writer]:
    """The writer for a bundle at `destination`: in place with `link_weights` where that is the checkpoint's own folder.

    Raises:
        UsageError: what stands there may not go, or weights cannot be linked.
        InputError: it cannot be written, or something else was faster.
    """
    folder = checkpoint.folder.resolve()
    if link_weights:
        check_linkable(checkpoint.tensors, dtype)
    if link_weights and destination.resolve() == folder:
        with in_place(folder, replace=replace, report=report) as beside:
            yield beside
    else:
        with staged_bundle(
            destination, checkpoint, dtype, link_weights=link_weights, replace=replace, report=report
        ) as apart:
            yield apart
