"""Adding plans to a bundle that stands at the destination: its weights and its other plans are taken over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from vtexport.bundle import manifest as schema
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.safetensors_index import read_header
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.export.weights import Weight, stored_weight


def find_earlier(destination: Path, *, replace: bool) -> Bundle | None:
    """The bundle that stands at `destination`, or None where there is none or it is to be replaced.

    Raises:
        UsageError: it cannot be opened, and the user did not say that it may go.
    """
    if replace or not (destination / schema.MANIFEST_NAME).is_file():
        return None
    try:
        return open_bundle(destination)
    except BundleError as error:
        raise UsageError(f"{error} with --replace, or give another -o/--output") from error


def check_same_model(earlier: Bundle, source: schema.Source, precision: str) -> None:
    """Refuses to add to a bundle that was made of other files.

    Raises:
        UsageError: checkpoint, configuration, tokenizer or precision differ.
    """
    before = earlier.manifest
    choices = "give another -o/--output, or --replace to discard what stands there"
    if before.precision != precision:
        raise UsageError(f"{earlier.folder} is a bundle in {before.precision}, this build is in {precision}; {choices}")
    if before.source.files != source.files:
        differing = sorted(name for name, _ in before.source.files.items() ^ source.files.items())
        raise UsageError(
            f"{earlier.folder} is a bundle of another checkpoint ({before.source.id}: {differing[0]} differs); "
            f"{choices}"
        )


def weights_of(earlier: Bundle, prefix: str, family: ModuleType) -> dict[str, Weight]:
    """Canonical name -> weight, from the headers of the bundle's weight files (those under `prefix`)."""
    weights: dict[str, Weight] = {}
    for name in earlier.manifest.files:
        if name.startswith(prefix):
            for stored, entry in read_header(earlier.path(name)).items():
                weights[family.canonical_name(stored)] = stored_weight(name.removeprefix(prefix), entry, entry.offset)
    return weights


def take_over(earlier: Bundle, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Puts files of the earlier bundle into `folder` without copying them, where the file system can; their hashes.

    Hard links: the earlier bundle goes when the new one is in place, so each file has one name again.
    """
    hashes = {}
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(earlier.path(name), target)
        except OSError:  # FAT and some network file systems have no hard links
            shutil.copyfile(earlier.path(name), target)
        hashes[name] = earlier.manifest.files[name].sha256
    return hashes


def unchanged(destination: Path) -> Callable[[], None]:
    """A check for the moment before the exchange: what stands at `destination` is still what stood there at first.

    The check raises InputError where another build was faster; its plans would be lost.
    """

    def manifest() -> bytes | None:
        path = destination / schema.MANIFEST_NAME
        return path.read_bytes() if path.is_file() else None

    at_first = manifest()

    def check() -> None:
        if manifest() != at_first:
            raise InputError(
                f"another build changed {destination} meanwhile; run the command again to add to its result"
            )

    return check
