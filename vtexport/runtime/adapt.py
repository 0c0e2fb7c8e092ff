"""Setting the adaptive plans of a bundle by a folder of images: the vision graph alone runs, once an image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtexport.backends.registry import open_backend
from vtexport.bundle.abilities import choose_graphs
from vtexport.bundle.adaptive import Adaptation, read_adaptations, write_adaptations
from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.reader import Bundle
from vtexport.errors import BundleError, InputError, UsageError, quoted
from vtexport.runtime.adaptive import fit, redundancy
from vtexport.runtime.vision import VisionStage


@dataclass(frozen=True)
class Adapted:
    """The images of one run of `adapt`, and what they set."""

    adaptations: dict[str, Adaptation]  # by adaptive plan
    redundancies: dict[str, float]  # rho by file
    unreadable: dict[str, str]  # why, by file


def adapt(
    bundle: Bundle,
    images: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    note: Callable[[str], object] = lambda text: None,
) -> Adapted:
    """Sets the normaliser of every adaptive plan of the bundle and writes adaptive.json.

    Args:
        bundle: a bundle with an adaptive plan; its manifest and files are not changed.
        images: a folder; every file in it and in its folders is an image, hidden ones aside.
        device, threads: as for `Pipeline.open`.
        progress: called with the number of files done and of all.
        note: called with a sentence for each file that cannot be read, and once where what was set before goes.

    Raises:
        UsageError: the bundle has no adaptive plan or lies in the hub's cache, or there is no such device.
        InputError: no such folder, nothing in it, nothing in it that can be read, or the bundle cannot be written.
        BundleError: the bundle is damaged, or takes images as this runtime does not.
        MissingDependencyError: ONNX Runtime is not installed, or runs none of the bundle's graphs.
    """
    manifest = bundle.manifest
    if not manifest.adaptive_plans:
        raise UsageError(
            f"{bundle.folder} has no adaptive plan to set; build one with `vtexport build --keep 32,64,128 --dynamic`"
        )
    refuse_to_write(bundle.folder)
    backend = open_backend(device=device, threads=threads)
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; give a folder of images")
    files = sorted(path for path in images.rglob("*") if path.is_file() and not _hidden(path.relative_to(images)))
    if not files:
        raise InputError(f"{images} holds no file; give a folder of images")
    try:
        before = read_adaptations(bundle.folder, manifest)
    except BundleError as error:
        note(f"what was set before is replaced ({quoted(error)})")
        before = {}
    # The features are the same in every vision graph, whatever signals it gives with them.
    plan = bundle.plan(manifest.adaptive_plans[0].plans[0])
    graphs = choose_graphs(manifest, plan, backend.provides.abilities)
    redundancies: dict[str, float] = {}
    unreadable: dict[str, str] = {}
    with contextlib.closing(backend):
        stage = VisionStage(bundle, graphs.vision, backend)
        for done, path in enumerate(files):
            progress(done, len(files))
            try:
                redundancies[str(path)] = redundancy(stage.patches(stage.run(stage.preprocess(path))))
            except InputError as error:
                unreadable[str(path)] = str(error)
                note(f"not counted: {error}")
    progress(len(files), len(files))
    if not redundancies:
        raise InputError(f"none of the {len(files)} files in {images} can be read as an image; give photographs")
    adaptations = {each.name: fit(bundle, each, list(redundancies.values())) for each in manifest.adaptive_plans}
    write_adaptations(bundle.folder, manifest, before | adaptations)
    return Adapted(adaptations, redundancies, unreadable)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
