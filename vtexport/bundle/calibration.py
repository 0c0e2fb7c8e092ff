"""A bundle's calibration.json: what its routes learned from a folder of images.

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
from vtexport.bundle.manifest import Manifest, Positive, Route, Sha256
from vtexport.errors import BundleError, InputError, quoted

SCHEMA_VERSION = 1
CALIBRATION_NAME = "calibration.json"


class RouteCalibration(msgspec.Struct, kw_only=True):
    """One route's normaliser, and what came of it on the images that it was set by."""

    budgets: list[Positive]  # of the route, ascending
    mean: Positive  # of the route: the mean budget that was asked for
    normaliser: Annotated[float, msgspec.Meta(gt=0)]  # an image of this 1 - rho would get `mean` tokens
    images: Positive
    mean_budget: float  # that the images got
    plain_mean_budget: float  # that they would get if the normaliser were their mean 1 - rho
    images_by_budget: dict[str, int]

    def fits(self, manifest: Manifest, route: Route) -> bool:
        """Whether it was made for this route as it is now."""
        return (self.budgets, self.mean) == (budgets(manifest, route), route.mean)


class Calibration(msgspec.Struct, kw_only=True):
    """All calibrated routes of a bundle by name."""

    schema_version: int
    source_sha256: Sha256  # of what the features follow from, see `source_digest`
    routes: dict[str, RouteCalibration]


def budgets(manifest: Manifest, route: Route) -> list[int]:
    """The budgets of a route, ascending."""
    keep = {plan.name: plan.keep for plan in manifest.plans}
    return [keep[name] for name in route.plans]


def source_digest(manifest: Manifest) -> str:
    """SHA-256 over the checkpoint's files and the bundle's precision: bundles that agree in it see images alike."""
    parts = [manifest.precision, *sorted(manifest.source.files.values())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_calibration(folder: Path, manifest: Manifest) -> dict[str, RouteCalibration]:
    """The calibrations that fit the bundle's routes, by route; those of routes that have changed are left out.

    Raises:
        BundleError: the file cannot be read, is of another checkpoint or leads out of the bundle.
    """
    path = folder / CALIBRATION_NAME
    again = "run `vtexport calibrate` again"
    if leads_out(path, folder):
        raise BundleError(f"{path} leads out of the bundle; delete it and {again}")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a calibration ({quoted(error, path)}); delete it and {again}") from error
    if found.schema_version != SCHEMA_VERSION:
        raise BundleError(f"{path} has schema_version {found.schema_version}, not {SCHEMA_VERSION}; delete it, {again}")
    if found.source_sha256 != source_digest(manifest):
        raise BundleError(f"{path} was made with another checkpoint or precision; delete it and {again}")
    return {
        route.name: found.routes[route.name]
        for route in manifest.routes
        if route.name in found.routes and found.routes[route.name].fits(manifest, route)
    }


def write_calibration(folder: Path, manifest: Manifest, routes: dict[str, RouteCalibration]) -> None:
    """Puts calibration.json in place whole.

    Raises:
        UsageError: the folder lies in the hub's cache.
        InputError: it cannot be written.
    """
    refuse_to_write(folder)
    value = Calibration(schema_version=SCHEMA_VERSION, source_sha256=source_digest(manifest), routes=routes)
    data = msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
    written: str | None = None
    try:
        descriptor, written = tempfile.mkstemp(prefix=f".{CALIBRATION_NAME}.", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(written).chmod(0o644)
        Path(written).replace(folder / CALIBRATION_NAME)
    except OSError as error:
        if written is not None:
            with contextlib.suppress(OSError):
                Path(written).unlink()
        raise InputError(f"{folder} cannot be written ({error.strerror}); copy the bundle to where it can") from error
