"""Adding plans to a bundle that stands at the destination: its weights and its other plans are taken over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vtexport.assemble.weights import PlacedWeights, named_if_it_vanishes, stored_weight
from vtexport.bundle import manifest as schema
from vtexport.bundle.adaptive import read_adaptations, write_adaptations
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import leads_out
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.checkpoint.resolve import Checkpoint
from vtexport.checkpoint.safetensors_index import read_header
from vtexport.errors import BundleError, InputError, UsageError, quoted
from vtexport.export.plan import AdaptivePlanSpec, PlanSpec
from vtexport.graphs.weight import Weight
from vtexport.version import __version__


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
        why = str(error).replace(f"{destination}/", "")
        raise UsageError(
            f"{destination} holds a bundle that cannot be opened ({quoted(why, limit=160)}); "
            "give --replace to discard it, or another -o/--output"
        ) from error


_CHOICES = "give another -o/--output, or --replace to discard what stands there"


def check_same_making(earlier: Bundle, precision: str) -> None:
    """Refuses to add to a bundle that was made in another way; it is known before weights are looked at.

    Raises:
        UsageError: precision or vtexport's version differ.
    """
    before, choices = earlier.manifest, _CHOICES
    if before.precision != precision:
        raise UsageError(f"{earlier.folder} is a bundle in {before.precision}, this build is in {precision}; {choices}")
    if before.versions.get("vtexport") != __version__:
        other = before.versions.get("vtexport")
        raise UsageError(f"{earlier.folder} was made by vtexport {other}, this is {__version__}; {choices}")


def check_same_model(earlier: Bundle | None, source_files: Mapping[str, str], precision: str) -> None:
    """Refuses to add to a bundle that was made of other files, or as `check_same_making` does.

    Args:
        earlier: the bundle; None where there is none to add to.
        source_files: SHA-256 of the checkpoint's files by name.
        precision: of this build.

    Raises:
        UsageError: checkpoint, configuration or tokenizer differ.
    """
    if earlier is None:
        return
    check_same_making(earlier, precision)
    before = earlier.manifest
    # By hash, not by name: a snapshot of the hub's cache holds the same files under other names than a copy of it.
    if sorted(before.source.files.values()) != sorted(source_files.values()):
        differing = sorted(name for name, _ in before.source.files.items() ^ source_files.items())
        raise UsageError(
            f"{earlier.folder} is a bundle of another checkpoint ({before.source.id}: {differing[0]} differs); "
            f"{_CHOICES}"
        )


def weights_of(
    earlier: Bundle, prefix: str, checkpoint: Checkpoint, progress: Callable[[int], object] = lambda count: None
) -> PlacedWeights:
    """The weights in the bundle's files under `prefix`, from their headers; the checkpoint's are read and hashed.

    Raises:
        BundleError: a weight file of the bundle is damaged.
        InputError: one of the checkpoint vanishes.
    """
    with named_if_it_vanishes():
        source_hashes = {path.name: hash_file(path, progress) for path in checkpoint.weight_files}
    weights: dict[str, Weight] = {}
    written_hashes: dict[str, str] = {}
    for name, file in earlier.manifest.files.items():
        if not name.startswith(prefix):
            continue
        written_hashes[name.removeprefix(prefix)] = file.sha256
        try:
            header = read_header(earlier.path(name))
        except InputError as error:
            raise _damaged(earlier, name) from error
        for stored, entry in header.items():
            canonical = checkpoint.family.canonical_name(stored)
            if canonical in checkpoint.tensors:  # files may hold buffers that no graph uses
                weights[canonical] = stored_weight(name.removeprefix(prefix), entry, entry.offset)
    return PlacedWeights(weights, source_hashes, written_hashes)


def linked(earlier: Bundle, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Puts files of the earlier bundle into `folder` without copying them, where the file system can; their hashes.

    Hard links: the earlier bundle goes when the new one is in place, so each file has one name again.

    Raises:
        BundleError: a file is not what the earlier manifest says.
        InputError: another build has replaced the earlier bundle meanwhile.
    """
    hashes = {}
    for name in names:
        source, target = earlier.path(name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(source, target)
            except FileNotFoundError:
                raise
            except OSError:  # FAT and some network file systems have no hard links
                shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise _changed_meanwhile(earlier.folder) from error
        hashes[name] = earlier.manifest.files[name].sha256
        if hash_file(target) != hashes[name]:
            raise _damaged(earlier, name)
    return hashes


def kept_plans(
    earlier: Bundle | None, plans: Iterable[PlanSpec], graphs: Mapping[str, schema.Graph]
) -> tuple[list[schema.Plan], dict[str, schema.Graph]]:
    """The earlier plans that no new one of `plans` replaces, and the graphs they use that are not among `graphs`."""
    if earlier is None:
        return [], {}
    kept = [plan for plan in earlier.manifest.plans if plan.name not in {new.name for new in plans}]
    used = {name for plan in kept for name in plan.graph_names()} - set(graphs)
    return kept, {name: earlier.manifest.graphs[name] for name in sorted(used)}


def kept_adaptive_plans(earlier: Bundle | None, added: AdaptivePlanSpec | None) -> list[schema.AdaptivePlan]:
    """The earlier adaptive plans that `added` does not replace."""
    before = earlier.manifest.adaptive_plans if earlier else []
    return [each for each in before if added is None or each.name != added.name]


def checked(earlier: Bundle, names: Iterable[str]) -> dict[str, schema.File]:
    """Sizes and hashes of files that stay where they are, from the earlier manifest, once they have been read.

    Raises:
        BundleError: a file is not what it says.
    """
    files = {name: earlier.manifest.files[name] for name in names}
    for name, file in files.items():
        if hash_file(earlier.path(name)) != file.sha256:
            raise _damaged(earlier, name)
    return files


def carry_adaptations(earlier: Bundle, folder: Path, manifest: schema.Manifest, note: Callable[[str], object]) -> None:
    """Puts the earlier adaptive.json into `folder` for the adaptive plans that are as they were; tells of others.

    It is read at the last moment, so what `vtexport adapt` sets during the build is not lost.
    """
    try:
        found = read_adaptations(earlier.folder, earlier.manifest)
    except BundleError as error:
        note(f"what images had set is not taken over ({quoted(error)})")
        return
    present = {each.name: each for each in manifest.adaptive_plans}
    kept = {name: each for name, each in found.items() if name in present and each.fits(manifest, present[name])}
    if kept:
        write_adaptations(folder, manifest, kept)
    for name in sorted(set(found) - set(kept)):
        note(f"the adaptive plan {name} has changed, so what images had set goes; run `vtexport adapt` afterwards")


def carry_reports(earlier: Bundle, folder: Path) -> None:
    """Copies what was measured of the earlier bundle into `folder`: each report names the manifest that it is of."""
    for file in (earlier.folder / "reports").glob("[!.]*.json"):
        if file.is_file() and not leads_out(file, earlier.folder):
            (folder / "reports").mkdir(exist_ok=True)
            shutil.copyfile(file, folder / "reports" / file.name)


def tell_of_engines(folder: Path, note: Callable[[str], object]) -> None:
    """Says that the engines in a bundle's `folder` go, where there are any: they are of graphs that are replaced."""
    if (folder / "engines").is_dir():
        note(f"the engines of {folder} are of its present graphs and go; run `vtexport compile` afterwards")


def _damaged(earlier: Bundle, name: str) -> BundleError:
    return BundleError(
        f"{earlier.path(name)} does not have the SHA-256 that the bundle's manifest states; "
        "give --replace to build the bundle anew"
    )


def _changed_meanwhile(destination: Path) -> InputError:
    return InputError(f"another build changed {destination} meanwhile; run the command again to add to its result")


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
            raise _changed_meanwhile(destination)

    return check
