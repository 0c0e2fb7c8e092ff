"""A bundle's adaptive.json: its adaptive plans as a folder of images set them.

It is a file of its own, because the manifest never changes. It says what it was made for; where that does not fit the
bundle any more, it is refused rather than used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from vtexport.bundle.hub_cache import leads_out, refuse_to_write
from vtexport.bundle.manifest import AdaptivePlan, Manifest, Positive, Sha256
from vtexport.errors import BundleError, InputError, quoted

SCHEMA_VERSION = 2
ADAPTIVE_NAME = "adaptive.json"


class Adaptation(msgspec.Struct, kw_only=True):
    """One adaptive plan's normaliser, and what came of it on the images that it was set by."""

    budgets: list[Positive]  # of the plan, ascending
    mean: Positive  # of the plan: the mean budget that was asked for
    normaliser: Annotated[float, msgspec.Meta(gt=0)]  # an image of this 1 - rho would get `mean` tokens
    images: Positive
    mean_budget: float  # that the images got
    plain_mean_budget: float  # that they would get if the normaliser were their mean 1 - rho
    images_by_budget: dict[str, int]

    def fits(self, manifest: Manifest, adaptive: AdaptivePlan) -> bool:
        """True where it was made for this plan as it is now."""
        return (self.budgets, self.mean) == (budgets_of(manifest, adaptive), adaptive.mean)


class _Version(msgspec.Struct):
    schema_version: int


class AdaptiveFile(msgspec.Struct, kw_only=True):
    """The file's content: the adaptive plans of a bundle that images have set, by name."""

    schema_version: int
    source_sha256: Sha256  # of what the features follow from, see `source_digest`
    adaptations: dict[str, Adaptation]


def budgets_of(manifest: Manifest, adaptive: AdaptivePlan) -> list[int]:
    """The budgets of an adaptive plan, ascending."""
    keep = {plan.name: plan.keep for plan in manifest.plans}
    return [keep[name] for name in adaptive.plans]


def source_digest(manifest: Manifest) -> str:
    """SHA-256 over the checkpoint's files and the bundle's precision: bundles that agree in it see images alike."""
    parts = [manifest.precision, *sorted(manifest.source.files.values())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_adaptations(folder: Path, manifest: Manifest) -> dict[str, Adaptation]:
    """The adaptations that fit the bundle's adaptive plans, by name; those of plans that have changed are left out.

    Raises:
        BundleError: the file cannot be read, is of another checkpoint or leads out of the bundle.
    """
    path = folder / ADAPTIVE_NAME
    again = "run `vtexport adapt` again"
    if leads_out(path, folder):
        raise BundleError(f"{path} leads out of the bundle; delete it and {again}")
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(f"{path} has schema_version {version}, not {SCHEMA_VERSION}; delete it, {again}")
        found = msgspec.json.decode(data, type=AdaptiveFile)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} sets no adaptive plans ({quoted(error, path)}); delete it and {again}") from error
    if found.source_sha256 != source_digest(manifest):
        raise BundleError(f"{path} was made with another checkpoint or precision; delete it and {again}")
    return {
        each.name: found.adaptations[each.name]
        for each in manifest.adaptive_plans
        if each.name in found.adaptations and found.adaptations[each.name].fits(manifest, each)
    }


def write_adaptations(folder: Path, manifest: Manifest, adaptations: dict[str, Adaptation]) -> None:
    """Puts adaptive.json in place whole.

    Raises:
        UsageError: the folder lies in the hub's cache.
        InputError: it cannot be written.
    """
    refuse_to_write(folder)
    value = AdaptiveFile(schema_version=SCHEMA_VERSION, source_sha256=source_digest(manifest), adaptations=adaptations)
    data = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
    written: str | None = None
    try:
        descriptor, written = tempfile.mkstemp(prefix=f".{ADAPTIVE_NAME}.", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(written).chmod(0o644)
        Path(written).replace(folder / ADAPTIVE_NAME)
    except OSError as error:
        if written is not None:
            with contextlib.suppress(OSError):
                Path(written).unlink()
        raise InputError(f"{folder} cannot be written ({error.strerror}); copy the bundle to where it can") from error
