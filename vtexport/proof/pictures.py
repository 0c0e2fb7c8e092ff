"""Pictures for a proof where the user gives none: a scene of plain shapes, and noise with a photograph's spectrum."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SEED = 20260611
_COLOURS = ("#c0392b", "#27ae60", "#2980b9", "#f1c40f", "#8e44ad", "#ecf0f1", "#2c3e50")


def pictures() -> dict[str, Image.Image]:
    """One picture of each kind by what it is, RGB, neither square, one wide and one upright."""
    return {
        f"generated: a scene of shapes, seed {SEED}": _scene(np.random.default_rng(SEED)),
        f"generated: noise of a photograph's spectrum, seed {SEED}": _photograph(np.random.default_rng(SEED)),
    }


def _scene(random: np.random.Generator) -> Image.Image:
    """480 x 360: ellipses and boxes on a ground that grows lighter."""
    width, height = 480, 360
    ramp = np.linspace(90, 200, height)[:, None, None] * np.array([0.8, 0.9, 1.0])
    picture = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number in range(9):
        left, top = int(random.integers(0, width - 60)), int(random.integers(0, height - 60))
        box = (left, top, left + int(random.integers(30, 140)), top + int(random.integers(30, 110)))
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape(box, fill=_COLOURS[number % len(_COLOURS)])
    return picture


def _photograph(random: np.random.Generator) -> Image.Image:
    """320 x 400: amplitudes fall with the frequency, as in photographs; channels are alike but not the same."""
    width, height = 320, 400
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    layers = []
    for _ in range(4):
        phase = np.exp(2j * np.pi * random.random(frequency.shape))
        layer = np.fft.irfft2(phase / frequency, s=(height, width))
        layers.append((layer - layer.mean()) / layer.std())
    shared, own = layers[0][..., None], np.stack(layers[1:], axis=-1)
    levels = 120 + 40 * shared + 22 * own
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
