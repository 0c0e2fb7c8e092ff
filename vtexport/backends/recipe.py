"""Schema of a target recipe."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vtexport.bundle.abilities import Abilities
from vtexport.dtypes import DTYPES, Precision

IR_VERSION = 10  # that the parsers of every target here read

# Of an NVIDIA GPU, as NVIDIA writes it
ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d$")]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]
Date = Annotated[str, msgspec.Meta(pattern=r"^20\d\d-\d\d-\d\d$")]


class Source(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Page that facts about a device stand on; `note` says how a value follows from it, or how the page was read."""

    facts: Annotated[list[str], msgspec.Meta(min_length=1)]  # fields of the device
    url: Annotated[str, msgspec.Meta(pattern="^https://")]
    read: Date
    note: str = ""


class Device(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One module or card that a target runs on. What no source says is left out."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9.-]*$")]
    title: str
    compute_capability: ComputeCapability
    memory_gb: AboveZero | None = None  # as its maker says
    memory_mib: AboveZero | None = None  # as its system or its driver reports
    shared_memory: bool = False  # one for CPU and GPU
    system_mib: AboveZero | None = None  # what an idle system takes of a shared one
    cma_mib: AboveZero | None = None  # of the contiguous memory allocator, which is part of the memory
    bandwidth_gb_s: AboveZero | None = None  # of the memory, at its peak
    tflops: dict[Precision, AboveZero] = {}  # dense matrix products at their peak, summed in float32 where that differs
    sources: list[Source] = []

    @property
    def memory_bytes(self) -> float | None:
        """The whole memory: as reported, else as its maker says."""
        if self.memory_mib is not None:
            return self.memory_mib * 2**20
        return None if self.memory_gb is None else self.memory_gb * 1e9


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
    devices: list[Device] = []
    devices_of: str = ""  # the target that has the same ones
    name: str = ""  # of the file

    @property
    def abilities(self) -> Abilities:
        """The device's abilities, against which graphs declare their needs."""
        return Abilities(self.title, ir_version=IR_VERSION, opset=self.opset, types=frozenset(DTYPES))

    @property
    def default_precision(self) -> Precision:
        """The precision to build in where none is named."""
        return self.precisions[0]
