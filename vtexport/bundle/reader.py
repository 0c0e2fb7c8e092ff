"""Opening a bundle: schema, paths and sizes at once, hashes on request."""

from __future__ import annotations

import functools
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import leads_out, repository_of
from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, AdaptivePlan, Manifest, Plan
from vtexport.bundle.manifest_json import decode
from vtexport.bundle.publish import recover
from vtexport.errors import BundleError, InputError, UsageError


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest has been read and whose files have the sizes it states."""

    folder: Path
    manifest: Manifest

    def path(self, relative: str) -> Path:
        """The file of that name in the bundle.

        Raises:
            BundleError: the manifest does not list it, so it was not checked when the bundle was opened.
        """
        if relative != MANIFEST_NAME and relative not in self.manifest.files:
            raise BundleError(f"{self.folder} does not list {relative!r} in its manifest; build the bundle again")
        return self.folder / relative

    def plan(self, name: str | None = None) -> Plan:
        """The plan of that name, or the only one.

        Raises:
            UsageError: no such plan, or several to choose from.
        """
        plans = self.manifest.plans
        names = ", ".join([each.name for each in plans] + [each.name for each in self.manifest.adaptive_plans])
        if name is None:
            if len(plans) == 1:
                return plans[0]
            raise UsageError(f"{self.folder} has several plans; name one of them (--plan): {names}")
        for plan in plans:
            if plan.name == name:
                return plan
        raise UsageError(f"{self.folder} has no plan {name!r}; it has {names}")

    def plan_or_adaptive(self, name: str | None = None) -> Plan | AdaptivePlan:
        """The plan of that name, adaptive ones included; without a name the only plan, or the adaptive one over all.

        Raises:
            UsageError: no such plan, or several to choose from.
        """
        adaptive, plans = self.manifest.adaptive_plans, {plan.name for plan in self.manifest.plans}
        if name is None and len(adaptive) == 1 and plans == set(adaptive[0].plans):
            return adaptive[0]
        for each in adaptive:
            if each.name == name:
                return each
        return self.plan(name)

    def plans_of(self, name: str | None = None) -> list[Plan]:
        """The plan of that name, or those that the adaptive plan of that name chooses from.

        Raises:
            UsageError: no such plan, or several to choose from.
        """
        chosen = self.plan_or_adaptive(name)
        return [self.plan(each) for each in chosen.plans] if isinstance(chosen, AdaptivePlan) else [chosen]

    def verify(self, progress: Callable[[str, int], object] | None = None) -> list[str]:
        """Reads every file and compares its SHA-256; returns one sentence for each that differs.

        `progress` is called with the file's name and the number of bytes just read.
        """
        problems = []
        for relative, recorded in self.manifest.files.items():
            report = functools.partial(progress, relative) if progress else lambda count: None
            try:
                digest = hash_file(self.path(relative), report)
            except OSError as error:
                problems.append(f"{relative} cannot be read: {error.strerror}")
                continue
            if digest != recorded.sha256:
                problems.append(f"{relative} does not have the SHA-256 that the manifest states")
        return problems


def open_bundle(folder: str | Path) -> Bundle:
    """Reads the manifest and checks that every file is there with its size.

    Raises:
        InputError: there is no such folder.
        BundleError: it is not a bundle, or not a whole one.
    """
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the bundle that `vtexport build` wrote")
    path = folder / MANIFEST_NAME
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise BundleError(f"{path} is not a plain file; build or copy the bundle again")
        with path.open("rb") as opened:
            data = opened.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        if path.is_symlink():  # out of a cache whose links were copied, or whose blobs were cleaned
            raise BundleError(
                f"{path} links to a file that is not there; copy the bundle again with the files themselves (cp -rL)"
            ) from error
        raise BundleError(
            f"{folder} holds no {MANIFEST_NAME}, so it is not a bundle; make one with `vtexport build`"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; check its rights, or copy it again") from error
    manifest = decode(data, str(path))
    check_files(folder, manifest)
    return Bundle(folder, manifest)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Checks that every file of `manifest` is in `folder`, with its size.

    Raises:
        BundleError: one is missing, of another size or outside.
    """
    for relative, recorded in manifest.files.items():
        file = folder / relative
        try:
            status = file.stat()
        except OSError as error:
            raise BundleError(f"{file} is missing ({error.strerror}); build or copy the bundle again") from error
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise BundleError(f"{file} is not a plain file; build or copy the bundle again")
        if leads_out(file, folder):
            raise BundleError(
                f"{file} leads out of the bundle, to {file.resolve()}; make a copy that holds the files themselves "
                "(cp -rL, or hf download with --local-dir)"
            )
        if status.st_size != recorded.bytes:
            raise BundleError(
                f"{file} has {status.st_size} bytes, the manifest says {recorded.bytes}; build or copy the bundle again"
            )
    if repository_of(folder) is not None:
        _check_graphs_are_links(folder, manifest)


def _check_graphs_are_links(folder: Path, manifest: Manifest) -> None:
    """ONNX Runtime reads weights among a cache's blobs only for a graph that is a link to there itself."""
    linked = {name for name in manifest.files if (folder / name).is_symlink()}
    graph = next((each.file for each in manifest.graphs.values() if each.file not in linked), None)
    if graph is not None and any(name.endswith(".safetensors") for name in linked):
        raise BundleError(
            f"{folder / graph} is a file among links to weights, which ONNX Runtime refuses; make a copy that holds "
            "the files themselves (cp -rL, or hf download with --local-dir)"
        )
