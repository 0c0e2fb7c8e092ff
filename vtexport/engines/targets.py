"""Target recipes: one TOML file a device in the folder `engines/`."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vtexport.data_files import data_folder
from vtexport.dtypes import Precision
from vtexport.errors import UsageError, VtexportError, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


DEFAULT_TARGET = "cpu"  # what is built for where none is named
# Of an NVIDIA GPU, as NVIDIA writes it
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d$")]


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a device runs. `buildable` says whether this version of vtexport can build for it."""

    title: str
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    buildable: bool
    dialect: Literal["modern", "classic"]
    precisions: Annotated[list[Precision], msgspec.Meta(min_length=1)]  # the default first
    tensorrt: str | None = None  # version
    cuda: str | None = None  # version
    compute_capabilities: list[ComputeCapability] = []  # of its GPUs
    name: str = ""  # of the file

    @property
    def default_precision(self) -> Precision:
        """What is built where no precision is named."""
        return self.precisions[0]


def list_targets(folder: Path | None = None) -> list[Target]:
    """All targets, by name.

    Raises:
        VtexportError: a recipe does not follow the schema.
    """
    targets = []
    for path in sorted((folder or data_folder("engines")).glob("*.toml")):
        try:
            target = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Target)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise VtexportError(
                f"{path} is not a target recipe: {quoted(error, path)}; install vtexport again"
            ) from error
        target.name = path.stem
        targets.append(target)
    return targets


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
