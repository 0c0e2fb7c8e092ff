"""Scenes with questions and known answers, rendered from a seed: coloured shapes, digits and words on varied grounds.

The same seed gives the same scene. Training of the packaged `mini` uses seeds below `HELD_OUT_SEED` alone, evaluation
those from there on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from vtexport.eval.drawing import draw
from vtexport.eval.questions import TASKS, SceneQuestion, ask

__all__ = ["HELD_OUT_SEED", "TASKS", "Scene", "SceneQuestion", "held_out_scenes", "render_scene"]

HELD_OUT_SEED = 2**40  # the first seed that no training ever uses


@dataclass(frozen=True)
class Scene:
    """A picture (RGB) and questions about it, at most one a task, in the order of `TASKS`."""

    image: Image.Image
    questions: tuple[SceneQuestion, ...]


def render_scene(seed: int, *, size: int = 336, max_shapes: int = 6) -> Scene:
    """The scene of a seed: a picture of `size` x `size` pixels with 1 to `max_shapes` shapes.

    Tasks that the picture does not allow (reading a digit where none is written) are left out. `size` is at least 112
    and at most 512. Raises ValueError for a size outside that.
    """
    if not 112 <= size <= 512:
        raise ValueError(f"a scene is 112 to 512 pixels wide, not {size}")
    rng = random.Random(seed)
    drawing = draw(rng, size, max_shapes=max_shapes)
    asked = [ask(rng, drawing.items, task) for task in TASKS]
    return Scene(drawing.image, tuple(one.question for one in asked if one is not None))


def held_out_scenes(count: int) -> Iterator[Scene]:
    """The first `count` scenes that no training uses, at 336 pixels."""
    for number in range(count):
        yield render_scene(HELD_OUT_SEED + number)
