"""Questions about a drawn scene, with answers that follow from what was drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vtexport.eval.drawing import COLOURS, SHAPES, Box, Item

TASKS = ("existence", "colour", "shape", "counting", "digit", "word", "relation", "grounding")
MOST_TO_COUNT = 4  # larger numbers are not asked for
APART = 0.12  # of the frame; centres nearer than this along an axis are not asked about


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene.

    `box` is x0, y0, x1, y1 in 0..1 for grounding, None for the other tasks; `answer` is then the box as text in LLaVA's
    normalised format, "[0.12, 0.34, 0.56, 0.78]".
    """

    task: str
    question: str
    answer: str
    box: Box | None = None


@dataclass(frozen=True)
class Asked:
    """A question, and the items that its nouns name in their order (None for one that is not in the scene)."""

    question: SceneQuestion
    named: tuple[Item | None, ...] = ()


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def box_text(box: Box) -> str:
    """LLaVA's normalised format: two decimals, in brackets."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


def _existence(rng: random.Random, shapes: list[Item]) -> Asked:
    present = {(item.colour, item.name): item for item in shapes}
    if rng.random() < 0.5:
        colour, name = rng.choice(list(present))
    else:
        # Mostly a colour and a shape that are both there, but not together: neither alone gives the answer.
        mixed = [(a.colour, b.name) for a in shapes for b in shapes if (a.colour, b.name) not in present]
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
        colour, name = rng.choice(mixed if mixed and rng.random() < 0.6 else absent)
    found = present.get((colour, name))
    return Asked(SceneQuestion("existence", f"Is there a {colour} {name}?", "yes" if found else "no"), (found,))


def _colour(rng: random.Random, shapes: list[Item]) -> Asked | None:
    names = [item.name for item in shapes]
    single = [item for item in shapes if names.count(item.name) == 1]
    if not single:
        return None
    item = rng.choice(single)
    return Asked(SceneQuestion("colour", f"What colour is the {item.name}?", str(item.colour)), (item,))


def _shape(rng: random.Random, shapes: list[Item]) -> Asked | None:
    colours = [item.colour for item in shapes]
    single = [item for item in shapes if colours.count(item.colour) == 1]
    if not single:
        return None
    item = rng.choice(single)
    return Asked(SceneQuestion("shape", f"What shape is the {item.colour} object?", item.name), (item,))


def _counting(rng: random.Random, shapes: list[Item]) -> Asked:
    kinds = [(plural(shape), sum(item.name == shape for item in shapes)) for shape in SHAPES]
    kinds += [(f"{colour} objects", sum(item.colour == colour for item in shapes)) for colour in COLOURS]
    kinds += [("objects", len(shapes))]
    kinds = [(what, number) for what, number in kinds if number <= MOST_TO_COUNT]
    # First a number, then one of the questions with that answer: else nearly every answer would be 0 or 1.
    numbers = sorted({number for _, number in kinds})
    number = numbers[min(rng.randint(0, len(numbers)), len(numbers) - 1)]
    what = rng.choice([what for what, n in kinds if n == number])
    return Asked(SceneQuestion("counting", f"How many {what} are there?", str(number)))


def _text(kind: str, items: tuple[Item, ...]) -> Asked | None:
    for item in items:
        if item.kind == kind:
            return Asked(SceneQuestion(kind, f"What {kind} is written?", item.name))
    return None


def _side(rng: random.Random, here: tuple[float, float], there: tuple[float, float]) -> tuple[str, str] | None:
    """The words between two places ("left or right of") and the one that holds; None where they are too near."""
    for axis in rng.sample((0, 1), 2):
        distance = here[axis] - there[axis]
        if abs(distance) >= APART:
            words, between = (
                (("left", "right"), "left or right of") if axis == 0 else (("above", "below"), "above or below")
            )
            return between, words[distance > 0]
    return None


def _relation(rng: random.Random, shapes: list[Item]) -> Asked | None:
    if len(shapes) < 2:
        return None
    one, other = rng.sample(shapes, 2)
    found = _side(rng, one.centre, other.centre)
    if found is None:
        return None
    text = f"Is the {one.colour} {one.name} {found[0]} the {other.colour} {other.name}?"
    return Asked(SceneQuestion("relation", text, found[1]), (one, other))


def _grounding(rng: random.Random, shapes: list[Item]) -> Asked:
    item = rng.choice(shapes)
    question = SceneQuestion("grounding", f"Where is the {item.colour} {item.name}?", box_text(item.box), item.box)
    return Asked(question, (item,))


def ask_side(rng: random.Random, items: tuple[Item, ...]) -> Asked | None:
    """A step towards relations, for training: on which side of the picture's centre one object lies."""
    item = rng.choice([item for item in items if item.kind == "shape"])
    found = _side(rng, item.centre, (0.5, 0.5))
    if found is None:
        return None
    text = f"Is the {item.colour} {item.name} {found[0]} the centre?"
    return Asked(SceneQuestion("relation", text, found[1]), (item,))


def ask(rng: random.Random, items: tuple[Item, ...], task: str) -> Asked | None:
    """A question of one of `TASKS` about a scene with at least one shape; None where the scene does not allow it.

    "Objects" are the coloured shapes; digits and words are not counted. Raises ValueError for an unknown task.
    """
    shapes = [item for item in items if item.kind == "shape"]
    if task in ("digit", "word"):
        return _text(task, items)
    makers = {
        "existence": _existence,
        "colour": _colour,
        "shape": _shape,
        "counting": _counting,
        "relation": _relation,
        "grounding": _grounding,
    }
    if task not in makers:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return makers[task](rng, shapes)
