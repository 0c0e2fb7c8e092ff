"""Schema of a target recipe."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vtexport.bundle.abilities import Abilities
from vtexport.dtypes import DTYPES, Precision

IR_VERSION = 10  # that the parsers of every target here read

# Of an NVIDIA GPU, as NVIDIA writes it
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d$")]


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Target recipe: what a device runs. `buildable` says whether this version of vtexport can build for it."""

    title: str
    runtime: str  # one of `registry.runtimes`
    buildable: bool
    opset: Annotated[int, msgspec.Meta(ge=1)]  # the newest that it takes graphs of
    precisions: Annotated[list[Precision], msgspec.Meta(min_length=1)]  # the default first
    tensorrt: str | None = None  # version
    cuda: str | None = None  # version
    compute_capabilities: list[ComputeCapability] = []  # of its GPUs
    name: str = ""  # of the file

    @property
    def abilities(self) -> Abilities:
        """The device's abilities, against which graphs declare their needs."""
        return Abilities(self.title, ir_version=IR_VERSION, opset=self.opset, types=frozenset(DTYPES))

    @property
    def default_precision(self) -> Precision:
        """The precision to build in where none is named."""
        return self.precisions[0]
