"""The version of vtexport, and those of the libraries beside it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

__version__ = "0.1.0"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of vtexport, Python and those of the named distributions that are installed."""
    found = {"vtexport": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
