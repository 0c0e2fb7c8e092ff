"""Method "random": patches drawn once by a seed. The baseline that a pruning method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtexport.pruning.fixed_choice import emit_fixed, select_fixed
from vtexport.pruning.method import Array, Method, Parameters, Selection, Sizes, option
from vtexport.pruning.registry import register

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter


@dataclass(frozen=True)
class RandomParameters(Parameters):
    """The seed; 44 is the one of Nüwa's comparisons (arXiv 2602.02951)."""

    seed: int = option(44, kind=int, minimum=0, about="which patches; the same for every image")


@register
class RandomPatches(Method):
    """N patches drawn without replacement, in raster order; a graph holds them as a constant."""

    name = "random"
    op_type = "VtxRandomPatches"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image, all patches"
    has_plugin = False
    positions = "contiguous"
    parameters = RandomParameters

    def signals(self, parameters: RandomParameters) -> tuple[str, ...]:
        return ()

    def takes_cls(self, parameters: RandomParameters) -> bool:
        return False

    def resolve(
        self, parameters: RandomParameters, *, grid: tuple[int, int], keep: int | None
    ) -> tuple[int, RandomParameters]:
        return self.check_keep(keep, largest=grid[0] * grid[1], unit="patches"), parameters

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: RandomParameters
    ) -> Selection:
        return select_fixed(features, _drawn(sizes, parameters))

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: RandomParameters) -> dict[str, str]:
        return emit_fixed(emitter, sizes, _drawn(sizes, parameters))


def _drawn(sizes: Sizes, parameters: RandomParameters) -> list[int]:
    import numpy as np

    # The legacy generator: NumPy promises that its stream stays the same in all versions.
    return sorted(np.random.RandomState(parameters.seed % 2**32).permutation(sizes.tokens)[: sizes.keep].tolist())
