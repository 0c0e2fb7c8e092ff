"""Seam between the pipeline and what computes: a backend loads graphs, and its buffers lie where it computes.

From `pixel_values` to the logits the pipeline hands buffers from one graph to the next; `Buffer.numpy` is for what a
person reads, `Backend.read` for the logits that the next token is chosen from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vtexport.backends.record import Engines
from vtexport.bundle.abilities import Abilities

if TYPE_CHECKING:
    import numpy as np

    from vtexport.backends.recipe import Target
    from vtexport.bundle.reader import Bundle
    from vtexport.plugins.libraries import Choice


class Buffer(Protocol):
    """Values in the memory that a backend computes in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, batch first."""

    @property
    def dtype(self) -> str:
        """Name of the element type in `vtexport.dtypes`."""

    def numpy(self) -> np.ndarray:
        """The values for the host; bfloat16 as its bits in uint16."""


class Cache(Protocol):
    """Keys and values of a run of layers, token-major [1, capacity, H_kv, D], of which the first `length` are valid."""

    capacity: int
    length: int

    def past(self) -> Mapping[str, Buffer]:
        """The valid rows as a decoder graph's inputs `past_key_values.LAYER.key` and `.value`, until rows are added."""

    def append(self, outputs: Mapping[str, Buffer]) -> None:
        """Adds the rows that the graph returned as `new_key_values.LAYER.key` and `.value`.

        Raises:
            IndexError: they are more than the capacity.
        """

    def go_on(self, length: int, capacity: int) -> None:
        """Keeps the first `length` valid rows alone, with room for `capacity` rows at least, for another prompt.

        Buffers that `past` gave before are no longer to be used. The next prefill runs with these rows as its past, so
        an engine takes it where a profile has several new tokens behind past ones.

        Raises:
            IndexError: so many are not valid.
        """


class Session(Protocol):
    """One graph, loaded."""

    path: Path
    input_names: list[str]
    output_names: list[str]

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs by name; feeds that the graph does not take are passed over."""

    def check_input(self, name: str, *sizes: int) -> None:
        """Refuses a graph whose input does not end in these sizes, before memory is taken for it.

        Raises:
            BundleError: it has other sizes or no such input, so the bundle's manifest is not of this graph.
        """

    def close(self) -> None:
        """Gives the graph's memory back."""


@dataclass(frozen=True)
class Provides:
    """Facts about a backend on this machine, as data.

    Attributes:
        abilities: Its abilities, against which graphs declare their needs.
        plugins: The library that runs the pruning ops, or the reason why their function bodies do.
    """

    abilities: Abilities
    plugins: Choice


class Backend(Protocol):
    """Computes on one device."""

    provides: Provides

    def load(self, graph: Path, *, plugins: bool = False) -> Session:
        """Loads an ONNX file; with `plugins` the library of `provides` may run its pruning ops.

        Raises:
            BundleError: the file is not a graph that it can load.
            MissingDependencyError: the device or the library cannot be used.
        """

    def upload(self, array: np.ndarray) -> Buffer:
        """The values of an array where it computes."""

    def adopt(self, buffer: Buffer) -> Buffer:
        """The buffer itself where it is this backend's own, else its values uploaded."""

    def join(self, buffers: Sequence[Buffer]) -> Buffer:
        """One block [1, S, W] of blocks [1, s, W], one after the other; all have one type."""

    def first_rows(self, buffer: Buffer, count: int) -> Buffer:
        """[1, count, ...] of a block [1, N, ...]."""

    def is_finite(self, buffer: Buffer) -> bool:
        """True where no value is NaN or infinite."""

    def read(self, logits: Buffer) -> np.ndarray:
        """Logits [1, 1, V] as [V] float32 for the host."""

    def cache(self, layers: range, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str) -> Cache:
        """An empty cache for these layers."""

    def sync(self) -> None:
        """Waits until everything that was begun is done, so that a clock can be read."""

    def close(self) -> None:
        """Gives the memory of everything that it loaded back."""


class Compile(Protocol):
    """Builds engines of a bundle for a target.

    `check` refuses what it could not build, before minutes go into an export.
    """

    def check(self, target: Target, capabilities: Sequence[str]) -> None:
        """Refuses compute capabilities that the target does not have, or a machine that cannot build.

        Raises:
            UsageError: a capability is not known, or named twice.
            MissingDependencyError: a package is not installed.
        """

    def __call__(
        self,
        bundle: Bundle,
        target: Target,
        capabilities: Sequence[str],
        text_tokens: int,
        stage: Callable[[str], None],
    ) -> Engines:
        """Builds an engine of every graph that the bundle's plans run and puts them in place whole.

        Args:
            bundle: its manifest and its files are not changed.
            target: a recipe with this runtime.
            capabilities: compute capabilities such as "8.9"; a portable engine when empty.
            text_tokens: the longest text that a prefill takes beside the image.
            stage: called with a line before each engine.

        Raises:
            UsageError: the bundle's precision, a capability or a length does not fit.
            MissingDependencyError: a package is not installed.
            VtexportError: a graph is not taken; with the library's own sentence.
        """


@dataclass(frozen=True)
class Runtime:
    """One value of `runtime` in a target's recipe.

    Attributes:
        title: As its makers call it.
        open: Makes a backend from a device's name and a number of threads; None where vtexport runs nothing by it.
        compile: Builds its engines; None where it has none or they cannot be built here.
        has_engines: False where the bundle's graphs run as they are.
    """

    title: str
    open: Callable[[str, int | None], Backend] | None = None
    compile: Compile | None = None
    has_engines: bool = True
