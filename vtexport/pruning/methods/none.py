"""Method "none": all patches are kept and CLS is dropped, which is what the unpruned LLaVA feeds to its projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vtexport.errors import UsageError
from vtexport.pruning.method import Array, Method, Parameters, Selection, Sizes
from vtexport.pruning.registry import register

if TYPE_CHECKING:
    from vtexport.pruning.emit import Emitter


@register
class KeepAll(Method):
    """No pruning, in the shape of a pruning op: the baseline that every comparison needs."""

    name = "none"
    op_type = "VtxKeepAll"
    acts = "between the vision tower and the projector"
    budget = "all patches; leave it out or give the number of patches"
    has_plugin = False
    positions = "contiguous"
    parameters = Parameters

    def signals(self, parameters: Parameters) -> tuple[str, ...]:
        return ()

    def takes_cls(self, parameters: Parameters) -> bool:
        return True

    def resolve(self, parameters: Parameters, *, grid: tuple[int, int], keep: int | None) -> tuple[int, Parameters]:
        tokens = grid[0] * grid[1]
        if keep is not None and keep != tokens:
            raise UsageError(f"keep={keep!r} is not allowed for none, which keeps all {tokens} patches; leave keep out")
        return tokens, parameters

    def select(
        self, features: Array, signals: Mapping[str, Array], *, sizes: Sizes, parameters: Parameters
    ) -> Selection:
        from array_api_compat import array_namespace

        from vtexport.pruning.arrays import integers

        xp = array_namespace(features)
        every = integers(xp, [list(range(sizes.keep))] * features.shape[0], features)
        return Selection(every, features[:, 1:, :], {})

    def emit(self, emitter: Emitter, *, sizes: Sizes, parameters: Parameters) -> dict[str, str]:
        import numpy as np

        e = emitter
        every = np.broadcast_to(np.arange(sizes.tokens, dtype=np.int64), (sizes.batch, sizes.tokens))
        return {
            "kept_features": e.Slice("features", [1], [1 + sizes.tokens], [1]),
            "keep_indices": e.constant(every),
        }
