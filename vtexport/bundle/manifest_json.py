"""The JSON form of a bundle's manifest: written, and read with every check that needs no other file."""

from __future__ import annotations

import msgspec

from vtexport.bundle.manifest import MAX_MANIFEST_BYTES, SCHEMA_VERSION, Manifest
from vtexport.bundle.references import check_references
from vtexport.errors import BundleError, quoted


class _Version(msgspec.Struct):
    schema_version: int


def encode(manifest: Manifest) -> bytes:
    """UTF-8 JSON with sorted keys, indented for people and for diffs."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in `data`; `where` names it in errors.

    Raises:
        BundleError: not JSON, another schema version, a field missing or of a wrong type, a reference that leads
            nowhere, or a path that leaves the bundle.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where} has {len(data)} bytes, more than a manifest can have; build the bundle again")
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema_version {version}, this vtexport reads {SCHEMA_VERSION}; "
                f"use the vtexport version that wrote it or build the bundle again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{where} is not a bundle manifest ({quoted(error, where)}); build or copy the bundle again"
        ) from error
    check_references(manifest, where)
    return manifest
