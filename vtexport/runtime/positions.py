"""Position ids of a prompt with an image in it."""

from __future__ import annotations

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


def prompt_positions(before: int, visual: np.ndarray, span: int, after: int) -> np.ndarray:
    """Position ids [axes, before + N + after] int64 of text, visual tokens and text.

    Args:
        before: Number of text tokens before the image.
        visual: [axes, N] int64, counted from the image's place.
        span: Position ids that the image takes (`image_span`).
        after: Number of text tokens behind it.
    """

    def text(start: int, count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(start, start + count), (len(visual), count))

    return np.concatenate([text(0, before), before + visual, text(before + span, after)], axis=1)
