"""The plugin library that engines are built with, and what TensorRT-RTX needs to take plugins at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vtexport.backends.trt.flavour import Flavour
from vtexport.bundle.unfinished import discarded_when_interrupted
from vtexport.plugins.libraries import KERNELS_BEGIN, Choice, architectures, choose_plugin


def plugin_for(capabilities: Sequence[str]) -> Choice:
    """The plugin library of this installation for engines of these compute capabilities.

    None where the functions of the pruning ops are built in its place, with the reason: it is not built, or has no
    kernels for one of the capabilities. A portable engine (no capabilities) takes what there is; on a GPU that the
    library has no kernels for, its plugin says so when it runs.
    """
    choice = choose_plugin()
    if choice.library is None:
        return choice
    kernels = architectures(choice.library.parent)
    for capability in capabilities:
        major, minor = map(int, capability.split("."))
        if (major, minor) < KERNELS_BEGIN:
            return Choice(None, f"its kernels begin at compute capability {'.'.join(map(str, KERNELS_BEGIN))}")
        # Binary code of one compute capability runs on those of the same major number and no lower minor one.
        if not any(other == major and least <= minor for other, least in kernels):
            return Choice(None, f"{choice.library.parent} has no kernels for compute capability {capability}")
    return choice


@contextlib.contextmanager
def environment(flavour: Flavour) -> Iterator[dict[str, str]]:
    """Environment variables of a process whose ONNX parser is to take plugins.

    The parser of TensorRT-RTX opens its own library by an unversioned name where it meets a plugin's node, and ends the
    process if that fails. NVIDIA's Python package has the versioned name alone, so a folder with a link of the other
    name to the same file goes in front of LD_LIBRARY_PATH, which is read when a process starts. While the block runs,
    the folder is there.
    """
    variables = dict(os.environ)
    file = _versioned(flavour)
    if file is None or file.with_name(flavour.opened_as).exists():
        yield variables
        return
    folder = Path(tempfile.mkdtemp(prefix="vtexport-"))

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with discarded_when_interrupted(folder, remove):
        try:
            (folder / flavour.opened_as).symlink_to(file)
            searched = os.pathsep.join(filter(None, [str(folder), variables.get("LD_LIBRARY_PATH")]))
            yield variables | {"LD_LIBRARY_PATH": searched}
        finally:
            remove()


def _versioned(flavour: Flavour) -> Path | None:
    """The file of the flavour's library in NVIDIA's Python package of libraries; None where it comes another way."""
    if not flavour.opened_as:
        return None
    package = importlib.util.find_spec(f"{flavour.module}_libs")
    folders = (package.submodule_search_locations if package is not None else None) or []
    return next((file.resolve() for folder in folders for file in Path(folder).glob(f"{flavour.opened_as}.*")), None)
