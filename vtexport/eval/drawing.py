"""Draws what scenes consist of: a background with clutter, coloured shapes, a digit, a word."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vtexport.eval.font import glyphs

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 210, 40),
    "purple": (150, 50, 180),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = tuple("0123456789")
WORDS = ("cat", "dog", "sun", "box", "key", "map", "bus", "ice")
# Side in pixels, and how often: half of the shapes are little larger than two patches of 14 pixels.
SIZES = ((26, 34), (40, 52), (62, 76))
SIZE_WEIGHTS = (0.45, 0.30, 0.25)
MARGIN = 4  # pixels between objects, and half of it to the border
TEXTURE = 512  # side of the noise that backgrounds are cut from

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One object of a scene.

    `kind` is "shape", "digit" or "word"; `name` the shape's name, the digit or the word; `colour` is None for text.
    `box` is x0, y0, x1, y1 in 0..1 of the frame, around the pixels that are drawn.
    """

    kind: str
    name: str
    colour: str | None
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """x and y in 0..1 of the frame."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Drawing:
    """A drawn canvas.

    `image` is RGB; `labels` [S, S] uint8 says to which item a pixel belongs (its number from 1, 0 for background).
    """

    image: Image.Image
    items: tuple[Item, ...]
    labels: NDArray[np.uint8]

    @property
    def shapes(self) -> list[Item]:
        return [item for item in self.items if item.kind == "shape"]


@cache
def _texture() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((TEXTURE, TEXTURE, 3), dtype=np.float32)


def _background(rng: random.Random, size: int) -> tuple[Image.Image, float]:
    """A flat, shaded or grained ground with lines and specks on it, and how bright it is (0 to 255)."""
    level = rng.choice(((215, 250), (120, 170), (15, 60)))
    base = np.array([rng.randint(*level) + rng.randint(-8, 8)] * 3, dtype=np.float32)
    base += np.array([rng.randint(-8, 8) for _ in range(3)], dtype=np.float32)
    ground = np.broadcast_to(base, (size, size, 3))
    if rng.random() < 0.6 and size <= TEXTURE:
        top, left = rng.randint(0, TEXTURE - size), rng.randint(0, TEXTURE - size)
        ground = ground + _texture()[top : top + size, left : left + size] * rng.uniform(5, 22)
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, size, dtype=np.float32) * rng.uniform(-24, 24)
        ground = ground + (ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None])
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 6)):
        ends = [(rng.uniform(0, size), rng.uniform(0, size)) for _ in range(2)]
        draw.line(ends, fill=tuple(rng.randint(60, 200) for _ in range(3)), width=rng.randint(1, 2))
    for _ in range(rng.randint(0, 8)):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(1, 3)
        grey = rng.randint(60, 200)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(grey, grey, grey))
    return image, float(base.mean())


def _outline(shape: str, side: float) -> list[tuple[float, float]]:
    """Corners of a shape around (0, 0), for a circle those of its box."""
    r = side / 2
    if shape in ("circle", "square"):
        return [(-r, -r), (r, r)]
    if shape == "triangle":
        return [(0, -r), (r, r), (-r, r)]
    if shape == "cross":
        t = r / 3
        return [
            (-t, -r),
            (t, -r),
            (t, -t),
            (r, -t),
            (r, t),
            (t, t),
            (t, r),
            (-t, r),
            (-t, t),
            (-r, t),
            (-r, -t),
            (-t, -t),
        ]
    turns = [(r if i % 2 == 0 else r * 0.42, i * math.pi / 5 - math.pi / 2) for i in range(10)]
    return [(length * math.cos(angle), length * math.sin(angle)) for length, angle in turns]


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, corners: list[tuple[int, int]], fill: int | tuple[int, ...]
) -> None:
    if shape == "circle":
        draw.ellipse(corners, fill=fill)
    elif shape == "square":
        draw.rectangle(corners, fill=fill)
    else:
        draw.polygon(corners, fill=fill)


class Canvas:
    """A square picture that grows item by item; no two items touch.

    `size` is its side in pixels. It may be a part of a larger frame (`frame` pixels, this part's upper left corner at
    `origin`): boxes are then given in the frame's coordinates.
    """

    def __init__(self, rng: random.Random, size: int, *, origin: tuple[int, int] = (0, 0), frame: int | None = None):
        self.rng, self.size, self.origin, self.frame = rng, size, origin, frame or size
        self.image, self.brightness = _background(rng, size)
        self.label_image = Image.new("L", (size, size))
        self.items: list[Item] = []
        self._taken: list[tuple[int, int, int, int]] = []

    def _place(self, width: int, height: int) -> tuple[int, int] | None:
        """A free upper left corner for a box, or None where twenty tries found none."""
        edge = MARGIN // 2
        if max(width, height) + 2 * edge > self.size:
            return None
        for _ in range(20):
            x, y = self.rng.randint(edge, self.size - width - edge), self.rng.randint(edge, self.size - height - edge)
            if not any(
                x < right + MARGIN and left < x + width + MARGIN and y < bottom + MARGIN and top < y + height + MARGIN
                for left, top, right, bottom in self._taken
            ):
                return x, y
        return None

    def _add(self, kind: str, name: str, colour: str | None, x: int, y: int, width: int, height: int) -> None:
        self._taken.append((x, y, x + width, y + height))
        dx, dy = self.origin
        box = (
            (x + dx) / self.frame,
            (y + dy) / self.frame,
            (x + width + dx) / self.frame,
            (y + height + dy) / self.frame,
        )
        self.items.append(Item(kind, name, colour, box))

    def add_shape(self, shape: str, colour: str, side: float) -> bool:
        """Draws a shape somewhere; False where no room was found."""
        points = _outline(shape, side)
        left, top = min(x for x, _ in points), min(y for _, y in points)
        corners = [(round(x - left), round(y - top)) for x, y in points]
        width, height = max(x for x, _ in corners) + 1, max(y for _, y in corners) + 1
        place = self._place(width, height)
        if place is None:
            return False
        corners = [(x + place[0], y + place[1]) for x, y in corners]
        fill = tuple(min(255, max(0, value + self.rng.randint(-18, 18))) for value in COLOURS[colour])
        _draw_shape(ImageDraw.Draw(self.image), shape, corners, fill)
        _draw_shape(ImageDraw.Draw(self.label_image), shape, corners, len(self.items) + 1)
        self._add("shape", shape, colour, *place, width, height)
        return True

    def add_text(self, kind: str, text: str, cell: int) -> bool:
        """Writes a digit or word, `cell` pixels a cell of the font, dark on light or light on dark."""
        cells = glyphs(text)
        height, width = cells.shape[0] * cell, cells.shape[1] * cell
        place = self._place(width, height)
        if place is None:
            return False
        x, y = place
        grey = self.rng.randint(0, 30) if self.brightness > 100 else self.rng.randint(225, 255)
        mask = Image.fromarray(np.kron(cells.astype(np.uint8) * 255, np.ones((cell, cell), dtype=np.uint8)))
        self.image.paste((grey, grey, grey), (x, y), mask)
        # The label is the whole box: what lies between a character's strokes belongs to it.
        ImageDraw.Draw(self.label_image).rectangle((x, y, x + width - 1, y + height - 1), fill=len(self.items) + 1)
        self._add(kind, text, None, x, y, width, height)
        return True

    def finish(self) -> Drawing:
        return Drawing(self.image, tuple(self.items), np.array(self.label_image))


def draw(
    rng: random.Random,
    size: int,
    *,
    max_shapes: int = 6,
    origin: tuple[int, int] = (0, 0),
    frame: int | None = None,
) -> Drawing:
    """A random scene of 1 to `max_shapes` shapes (at least one), often with a digit or a word.

    No colour and shape occur together twice, so that "the red circle" names one object at most. In half of the scenes
    a colour or a shape is preferred, so that there is something to count. `size` (pixels), `origin` and `frame` are
    those of `Canvas`.
    """
    canvas = Canvas(rng, size, origin=origin, frame=frame)
    wanted = rng.randint(1, max_shapes)
    theme, colour, shape = rng.random(), rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    if rng.random() < 0.45:
        canvas.add_text("word", rng.choice(WORDS), rng.choice((3, 3, 4)))
    if rng.random() < 0.6:
        canvas.add_text("digit", rng.choice(DIGITS), rng.choice((4, 5, 6)))
    used: set[tuple[str, str]] = set()
    tries = 0
    while len(used) < wanted and (tries < 4 * wanted or not used):
        tries += 1
        c = colour if theme < 0.25 and rng.random() < 0.6 else rng.choice(tuple(COLOURS))
        s = shape if 0.25 < theme < 0.5 and rng.random() < 0.6 else rng.choice(SHAPES)
        side = rng.uniform(*rng.choices(SIZES, SIZE_WEIGHTS)[0])
        if (c, s) not in used and canvas.add_shape(s, c, min(side, size / 2)):
            used.add((c, s))
    return canvas.finish()
