"""A measure of how much a frame differs from the one that was asked about last."""

from __future__ import annotations

import numpy as np
from PIL import Image

CELLS = 16
USUAL_THRESHOLD = 0.05


class Change:
    """Compares frames by the mean brightness of 16 x 16 cells, in which a camera's noise averages out.

    Args:
        threshold: share of the range of brightness, 0 to 1; a frame is another one when the cell that differs most
            differs by more.
    """

    def __init__(self, threshold: float = USUAL_THRESHOLD):
        self._threshold = threshold
        self._kept: np.ndarray | None = None

    def of(self, image: Image.Image) -> float | None:
        """The largest difference of a cell to the kept frame, 0 to 1; None where there is none."""
        return None if self._kept is None else float(np.abs(_cells(image) - self._kept).max())

    def is_new(self, change: float | None) -> bool:
        """True for what `of` gave of a frame that is another one."""
        return change is None or change > self._threshold

    def keep(self, image: Image.Image) -> None:
        """Compares further frames with this one."""
        self._kept = _cells(image)


def _cells(image: Image.Image) -> np.ndarray:
    """[16, 16] float32, 0 to 1."""
    small = image.convert("L").resize((CELLS, CELLS), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255
