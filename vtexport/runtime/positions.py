"""Position ids of a prompt with images in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtexport.bundle.manifest import PositionIds
from vtexport.bundle.views import Arrangement, Vision


def image_span(ids: PositionIds, vision: Vision, arrangement: Arrangement, kept: int | None) -> int:
    """Number of position ids that an image takes: the text after it goes on behind them.

    Args:
        ids: Of the bundle.
        vision: Its layout of images.
        arrangement: Of this image's views.
        kept: Visual tokens that enter the language model where they are numbered through; None where each has the
            position id that it has without pruning.
    """
    if kept is not None:
        return kept
    if ids.kind == "mrope":
        return sum(max(view.rows, view.columns) for view in arrangement.views)
    return arrangement.tokens + vision.separator_rows(arrangement)


def prompt_positions(
    texts: Sequence[int], visuals: Sequence[np.ndarray], spans: Sequence[int], axes: int
) -> np.ndarray:
    """Position ids [axes, L] int64 of a prompt: text, the visual tokens of an image, text, and so on.

    Args:
        texts: Number of text tokens before each image, and behind the last.
        visuals: [axes, n] int64 of each image's n visual tokens, counted from its place.
        spans: Position ids that each image takes (`image_span`).
        axes: Ids that a token has (`PositionIds.axes`).
    """
    parts, start = [np.empty((axes, 0), np.int64)], 0
    for number, count in enumerate(texts):
        parts.append(np.broadcast_to(np.arange(start, start + count), (axes, count)))
        start += count
        if number < len(visuals):
            parts.append(start + visuals[number])
            start += spans[number]
    return np.concatenate(parts, axis=1)
