"""The one place that chooses among backends: each folder here tells its runtimes in a module `runtimes`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence

from vtexport import backends
from vtexport.backends.base import Backend, Compile, Runtime
from vtexport.backends.recipe import Target
from vtexport.backends.record import TEXT_TOKENS, Engines
from vtexport.bundle.reader import Bundle
from vtexport.errors import UsageError


@functools.cache
def runtimes() -> Mapping[str, Runtime]:
    """Every runtime by its name in a target's recipe.

    Raises:
        ValueError: two folders have one of the same name.
    """
    found: dict[str, Runtime] = {}
    for folder in pkgutil.iter_modules(backends.__path__):
        if folder.ispkg:
            told: dict[str, Runtime] = importlib.import_module(f"{backends.__name__}.{folder.name}.runtimes").RUNTIMES
            if twice := found.keys() & told.keys():
                raise ValueError(f"{folder.name} takes the name of another runtime: {', '.join(twice)}")
            found |= told
    return found


def open_backend(runtime: str = "onnxruntime", device: str = "cpu", threads: int | None = None) -> Backend:
    """A backend on a device.

    Args:
        runtime: as in a target's recipe.
        device: "cpu" or "cuda".
        threads: for one operator; all cores when None.

    Raises:
        UsageError: no such runtime or device, or vtexport runs nothing by it.
        MissingDependencyError: a package or a driver is not there.
    """
    known = runtimes()
    opens = known[runtime].open if runtime in known else None
    if opens is None:
        able = ", ".join(name for name, each in known.items() if each.open is not None)
        raise UsageError(f"no bundle is run by {runtime!r}; choose one of {able}")
    return opens(device, threads)


def compiler_for(target: Target) -> Compile:
    """The function that builds the engines of a target.

    Raises:
        UsageError: it has no engines, or they cannot be built here.
    """
    runtime = runtimes()[target.runtime]
    if not runtime.has_engines:
        raise UsageError(f"target {target.name} runs the bundle's graphs as they are; there is nothing to compile")
    if not target.buildable:
        raise UsageError(f"target {target.name} ({target.title}) cannot be built yet; see `vtexport list targets`")
    if runtime.compile is None:
        raise UsageError(
            f"target {target.name} runs {runtime.title} engines, which this version of vtexport cannot build; "
            "see `vtexport list targets` for those it can"
        )
    return runtime.compile


def compile_bundle(
    bundle: Bundle,
    target: Target,
    capabilities: Sequence[str] = (),
    text_tokens: int = TEXT_TOKENS,
    stage: Callable[[str], None] = lambda text: None,
) -> Engines:
    """Builds the engines of a bundle for a target; arguments and errors as of `base.Compile`.

    Raises:
        UsageError: the target has no engines, or they cannot be built here.
    """
    return compiler_for(target)(bundle, target, capabilities, text_tokens, stage)
