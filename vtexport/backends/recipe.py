"""Schema of a target recipe."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from vtexport.dtypes import Precision

# Of an NVIDIA GPU, as NVIDIA writes it
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d$")]


class Target(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Target recipe: what a device runs. `buildable` says whether this version of vtexport can build for it."""

    title: str
    runtime: str  # one of `registry.runtimes`
    buildable: bool
    dialect: Literal["modern", "classic"]
    precisions: Annotated[list[Precision], msgspec.Meta(min_length=1)]  # the default first
    tensorrt: str | None = None  # version
    cuda: str | None = None  # version
    compute_capabilities: list[ComputeCapability] = []  # of its GPUs
    name: str = ""  # of the file

    @property
    def default_precision(self) -> Precision:
        """The precision to build in where none is named."""
        return self.precisions[0]
