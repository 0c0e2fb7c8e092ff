"""Reference of the last step that several ops inside the language model share: the best visual tokens stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vtexport.pruning.op import visual_rows
from vtexport.pruning.types import Array, Selection, Sizes


def keep_top(xp: Any, inputs: Mapping[str, Array], scores: Array, sizes: Sizes) -> Selection:
    """The rows of the N largest of `scores` [T], ascending; ties to the lower index."""
    from array_api_compat import device

    from vtexport.pruning.arrays import descending_order

    keep, hidden = sizes.keep, visual_rows(inputs, "hidden_states", sizes)
    order = descending_order(xp, scores)
    kept = xp.sort(order[:keep])
    ranked = xp.take(scores, order)
    margin = ranked[keep - 1] - ranked[keep] if keep < scores.shape[0] else xp.asarray(math.inf, device=device(scores))
    details = {"scores": scores[None, :], "margin": xp.reshape(margin, (1,))}
    return Selection(kept[None, :], xp.take(hidden, kept, axis=0)[None, ...], details)
