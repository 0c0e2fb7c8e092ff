"""Method "uniform": patches at an even stride in raster order. The cheapest baseline there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vtexport.pruning.fixed_choice import emit_fixed, select_fixed
from vtexport.pruning.method import Array, Method, Parameters, Selection, Sizes
from vtexport.pruning.registry import register

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter


@register
class UniformPatches(Method):
    """The patch in the middle of each of N runs of equal length: i T / N + T / 2N, rounded down."""

    name = "uniform"
    op_type = "VtxUniformPatches"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image, all patches"
    has_plugin = False
    positions = "contiguous"

    def signals(self, parameters: Parameters) -> tuple[str, ...]:
        return ()

    def takes_cls(self, parameters: Parameters) -> bool:
        return False

    def resolve(self, parameters: Parameters, *, grid: tuple[int, int], keep: int | None) -> tuple[int, Parameters]:
        return self.check_keep(keep, largest=grid[0] * grid[1], unit="patches"), parameters

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: Parameters
    ) -> Selection:
        return select_fixed(features, _strided(sizes))

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: Parameters) -> dict[str, str]:
        return emit_fixed(emitter, sizes, _strided(sizes))


def _strided(sizes: Sizes) -> list[int]:
    return [(2 * place + 1) * sizes.tokens // (2 * sizes.keep) for place in range(sizes.keep)]
