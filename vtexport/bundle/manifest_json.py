"""The JSON form of a bundle's manifest: written, and read with every check that needs no other file."""

from __future__ import annotations

import msgspec

from vtexport.bundle.manifest import MAX_MANIFEST_BYTES, SCHEMA_VERSION, Manifest
from vtexport.bundle.references import check_references
from vtexport.errors import BundleError, quoted


class _Version(msgspec.Struct):
    """Facts that every schema so far has under these names."""

    schema_version: int
    versions: dict[str, str] = {}
    command: str = ""


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
        version = msgspec.json.decode(data, type=_Version)
        if version.schema_version != SCHEMA_VERSION:
            raise BundleError(f"{where} {_other_schema(version, where)}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{where} is not a bundle manifest ({quoted(error, where)}); build or copy the bundle again"
        ) from error
    check_references(manifest, where)
    return manifest


def _other_schema(version: _Version, where: str) -> str:
    """The rest of a sentence about a manifest of another schema, with what to do."""
    number, writer = version.schema_version, version.versions.get("vtexport")
    by = f"vtexport {quoted(writer, limit=20)}" if writer else "another vtexport"
    said = f"has schema_version {number}, written by {by}; this vtexport reads {SCHEMA_VERSION}"
    if number > SCHEMA_VERSION:
        return f"{said}: run pip install --upgrade vtexport"
    again = f", which was `{quoted(version.command, where, limit=160)}`" if version.command else ""
    return f"{said}: build the bundle again with its command and --replace{again}"
