"""The packages that building takes, and whether those installed are of versions that it works with."""

from __future__ import annotations

import importlib.metadata

from vtexport.errors import MissingDependencyError, cut

_EXTRA = "export"
# That extra's packages in pyproject.toml, less those of the base install
PACKAGES = (
    *("transformers", "onnx", "onnx-ir", "safetensors"),
    *("array-api-compat", "filelock", "sentencepiece"),
)


def installed() -> dict[str, str | None]:
    """The version of each package that building takes, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_versions() -> None:
    """Refuses to build with a package of a version that vtexport does not ask for.

    pip sees to that where it installs the extra `export`; these packages may also have been there before, or be changed
    afterwards. What is missing altogether is left to whoever imports it.

    Raises:
        MissingDependencyError: With each such package and the versions that are needed.
    """
    if others := ", ".join(f"{name} {version} ({needed} is needed)" for name, version, needed in unfit()):
        raise MissingDependencyError(
            f"building works with other versions than are installed: {cut(others, 180)}; run pip install "
            f"'vtexport[{_EXTRA}]'"
        )


def unfit() -> list[tuple[str, str, str]]:
    """Name, version and what is needed of each installed package that vtexport's own metadata does not allow.

    Empty where vtexport runs without having been installed, because then nothing says what it needs.
    """
    try:
        from packaging.requirements import Requirement

        needed = importlib.metadata.requires("vtexport") or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return []
    found: dict[str, tuple[str, str, str]] = {}  # by name, because an extra may ask for more than the rest
    for each in map(Requirement, needed):
        if each.marker is not None and not each.marker.evaluate({"extra": _EXTRA}):
            continue
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not each.specifier.contains(version, prereleases=True):
            found[each.name] = each.name, version, str(each.specifier)
    return list(found.values())
