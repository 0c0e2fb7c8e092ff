"""Target recipes: one TOML file a device in the folder `engines/`."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import msgspec

from vtexport.backends.recipe import Device, Target
from vtexport.backends.registry import runtimes
from vtexport.data_files import data_folder
from vtexport.errors import UsageError, VtexportError, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_TARGET = "cpu"  # what is built for where none is named


def list_targets(folder: Path | None = None) -> list[Target]:
    """All targets, by name.

    Raises:
        VtexportError: a recipe does not follow the schema.
    """
    targets = []
    for path in sorted((folder or data_folder("engines")).glob("*.toml")):
        try:
            target = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Target)
            if target.runtime not in runtimes():
                raise msgspec.ValidationError(f"runtime {target.runtime!r} is none of {', '.join(sorted(runtimes()))}")
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise VtexportError(
                f"{path} is not a target recipe: {quoted(error, path)}; install vtexport again"
            ) from error
        target.name = path.stem
        targets.append(target)
    for target in targets:
        _take_devices(target, targets)
    return targets


def _take_devices(target: Target, targets: list[Target]) -> None:
    """Gives a target the devices of the one that it names.

    Raises:
        VtexportError: there is no such target, it has none of its own, this one has some itself, or two of one name.
    """
    fault = ""
    if target.devices_of:
        own = {other.name: other.devices for other in targets if not other.devices_of}
        if target.devices or not own.get(target.devices_of):
            fault = (
                f"devices_of names {target.devices_of!r}; name a target with devices of its own, and give none beside"
            )
        target.devices = own.get(target.devices_of, [])
    names = [device.name for device in target.devices]
    if len(set(names)) < len(names):
        fault = "two of its devices have one name"
    if fault:
        raise VtexportError(f"the recipe of target {target.name} cannot be used: {fault}")


def check_precision(target: Target, precision: str) -> None:
    """Refuses a precision ("fp32", "fp16", "bf16") that `target` does not compute in.

    Raises:
        UsageError: with the targets that do.
    """
    if precision not in target.precisions:
        others = [other.name for other in list_targets() if other.buildable and precision in other.precisions]
        instead = f"give --target {' or '.join(others)}, or " if others else ""
        raise UsageError(
            f"target {target.name} takes {', '.join(target.precisions)}, not {precision}; "
            f"{instead}leave --precision out"
        )


def find_devices(name: str) -> tuple[Target, list[Device]]:
    """The target called `name` with its devices, or with one of them where the name is TARGET/DEVICE.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    before, separator, wanted = name.partition("/")
    target = find_target(before)
    if not separator:
        return target, target.devices
    chosen = [device for device in target.devices if device.name == wanted]
    if not chosen:
        known = ", ".join(device.name for device in target.devices) or "none"
        raise UsageError(f"target {target.name} has no device {wanted!r}; known: {known}")
    return target, chosen


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    targets = {target.name: target for target in list_targets()}
    if name not in targets:
        close = difflib.get_close_matches(name, targets, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"target {name!r} is not known; {hint}known: {', '.join(targets)}")
    return targets[name]
