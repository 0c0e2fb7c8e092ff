"""Rendered scenes: the same for a seed, with boxes around what is drawn and answers that the picture bears out."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtexport.eval import font
from vtexport.eval.drawing import COLOURS, DIGITS, SHAPES, WORDS, Drawing, Item, draw
from vtexport.eval.questions import APART, MOST_TO_COUNT, ask, ask_side, box_text, plural
from vtexport.eval.scenes import HELD_OUT_SEED, TASKS, SceneQuestion, held_out_scenes, render_scene

SEEDS = st.integers(0, 2 * HELD_OUT_SEED)
few = settings(max_examples=40, deadline=None)
NAMED = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def named(items: tuple[Item, ...], question: str) -> list[Item | None]:
    """The items that "red circle" and the like in a question stand for."""
    found = NAMED.findall(question)
    return [next((i for i in items if (i.colour, i.name) == pair), None) for pair in found]


def holds(items: tuple[Item, ...], question: SceneQuestion) -> bool:
    """True where an answer holds, worked out from the question's text."""
    shapes = [item for item in items if item.kind == "shape"]
    text, answer = question.question, question.answer
    if question.task in ("digit", "word"):
        return [item.name for item in items if item.kind == question.task] == [answer]
    if question.task == "existence":
        return (named(items, text) != [None]) == (answer == "yes")
    if question.task == "colour":
        return [i.colour for i in shapes if text == f"What colour is the {i.name}?"] == [answer]
    if question.task == "shape":
        return [i.name for i in shapes if text == f"What shape is the {i.colour} object?"] == [answer]
    if question.task == "counting":
        counted = {"objects": len(shapes)}
        counted |= {plural(shape): sum(i.name == shape for i in shapes) for shape in SHAPES}
        counted |= {f"{colour} objects": sum(i.colour == colour for i in shapes) for colour in COLOURS}
        return counted[text.removeprefix("How many ").removesuffix(" are there?")] == int(answer)
    one, *other = named(items, text)
    assert one is not None
    if question.task == "grounding":
        return question.box == one.box and answer == box_text(one.box)
    there = (0.5, 0.5) if text.endswith("the centre?") else other[0].centre  # type: ignore[union-attr]
    x, y = one.centre[0] - there[0], one.centre[1] - there[1]
    return {"left": x <= -APART, "right": x >= APART, "above": y <= -APART, "below": y >= APART}[answer]


def pixels_of(drawing: Drawing, number: int) -> tuple[int, int, int, int]:
    """The box of the pixels that are labelled as an item's, in pixels, the far edges behind the last ones."""
    rows, columns = np.nonzero(drawing.labels == number + 1)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@few
@given(SEEDS)
def test_a_seed_gives_the_same_scene_again(seed: int) -> None:
    one, again, other = render_scene(seed), render_scene(seed), render_scene(seed + 1)
    assert one.image.tobytes() == again.image.tobytes()
    assert one.questions == again.questions
    assert one.image.tobytes() != other.image.tobytes()
    assert (one.image.mode, one.image.size) == ("RGB", (336, 336))


@few
@given(SEEDS)
def test_every_answer_is_true(seed: int) -> None:
    items = draw(random.Random(seed), 336).items
    rng = random.Random(seed)
    for task in [*TASKS, *TASKS]:
        asked = ask(rng, items, task)
        assert asked is None or holds(items, asked.question), asked
        assert asked is None or asked.question.task == task
    side = ask_side(rng, items)
    assert side is None or holds(items, side.question)


@few
@given(SEEDS)
def test_nouns_name_their_items(seed: int) -> None:
    items = draw(random.Random(seed), 336).items
    for task in ("existence", "relation", "grounding"):
        asked = ask(random.Random(seed), items, task)
        assert asked is None or list(asked.named) == named(items, asked.question.question)


@few
@given(SEEDS, st.sampled_from([112, 168, 336, 512]))
def test_boxes_are_around_what_is_drawn(seed: int, size: int) -> None:
    drawing = draw(random.Random(seed), size)
    assert drawing.shapes
    assert len({(item.colour, item.name) for item in drawing.shapes}) == len(drawing.shapes)
    for number, item in enumerate(drawing.items):
        assert np.allclose(np.array(item.box) * size, pixels_of(drawing, number))
    for one, other in itertools.combinations(drawing.items, 2):
        apart = [one.box[i] >= other.box[i + 2] or other.box[i] >= one.box[i + 2] for i in (0, 1)]
        assert any(apart), "two items overlap"


@few
@given(SEEDS)
def test_shapes_have_their_colour_in_the_picture(seed: int) -> None:
    drawing = draw(random.Random(seed), 336)
    pixels = np.asarray(drawing.image).astype(int)
    for number, item in enumerate(drawing.items):
        own = pixels[drawing.labels == number + 1]
        if item.colour:
            distance = {name: np.abs(own - np.array(value)).max() for name, value in COLOURS.items()}
            assert min(distance, key=lambda name: distance[name]) == item.colour
        else:
            assert np.ptp(own.mean(1)) > 60, "text does not stand out from its ground"


def test_a_part_of_a_frame_gives_the_frames_boxes() -> None:
    part = draw(random.Random(3), 112, origin=(224, 56), frame=336)
    whole = draw(random.Random(3), 112)
    assert part.image.tobytes() == whole.image.tobytes()
    for one, other in zip(part.items, whole.items, strict=True):
        x0, y0, x1, y1 = (value * 112 for value in other.box)
        assert np.allclose(np.array(one.box) * 336, (x0 + 224, y0 + 56, x1 + 224, y1 + 56))


def test_every_task_and_every_answer_occurs() -> None:
    answers: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for scene in held_out_scenes(600):
        tasks = [question.task for question in scene.questions]
        assert tasks == [task for task in TASKS if task in tasks], "one question a task, in order"
        for question in scene.questions:
            answers[question.task][question.answer] += 1
    assert set(answers["existence"]) == {"yes", "no"}
    assert set(answers["colour"]) == set(COLOURS)
    assert set(answers["shape"]) == set(SHAPES)
    assert set(answers["counting"]) == {str(number) for number in range(MOST_TO_COUNT + 1)}
    assert set(answers["digit"]) == set(DIGITS)
    assert set(answers["word"]) == set(WORDS)
    assert set(answers["relation"]) == {"left", "right", "above", "below"}
    for task in ("existence", "counting", "relation"):  # no answer is a good guess without looking
        assert max(answers[task].values()) < 1.4 * sum(answers[task].values()) / len(answers[task]), answers[task]


def test_grounding_is_in_the_normalised_format() -> None:
    for scene in held_out_scenes(20):
        for question in scene.questions:
            assert (question.box is not None) == (question.task == "grounding")
            if question.box is not None:
                assert re.fullmatch(r"\[[01]\.\d\d, [01]\.\d\d, [01]\.\d\d, [01]\.\d\d\]", question.answer)
                values = [float(text) for text in question.answer.strip("[]").split(", ")]
                assert np.abs(np.array(values) - question.box).max() <= 0.005 + 1e-9


def test_held_out_scenes_begin_behind_the_seeds_of_training() -> None:
    first, second = held_out_scenes(2)
    assert first.image.tobytes() == render_scene(HELD_OUT_SEED).image.tobytes()
    assert second.questions == render_scene(HELD_OUT_SEED + 1).questions


@pytest.mark.parametrize("size", [0, 111, 513])
def test_sizes_outside_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"112 to 512 pixels wide, not {size}"):
        render_scene(0, size=size)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="unknown task 'smell'; there are existence"):
        ask(random.Random(0), draw(random.Random(0), 336).items, "smell")


def test_the_fonts_characters_differ() -> None:
    characters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    drawn = {font.glyphs(character).tobytes() for character in characters}
    assert len(drawn) == len(characters)
    assert font.glyphs("cat").shape == (7, 17)
    with pytest.raises(KeyError):
        font.glyphs("é")
