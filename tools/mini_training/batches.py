"""Batches of rendered scenes with dense labels and packed questions. No visual token is ever left out.

Canvases of fewer than 24 x 24 patches are smaller pictures: a part of the frame is drawn and all of it is seen, at its
own place among the position embeddings. The language model sees their tokens at contiguous positions, so it learns on
sequences of many lengths.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mini_training import words
from vtexport.eval.drawing import COLOURS, Drawing, Item, draw
from vtexport.eval.questions import TASKS, Asked, ask, ask_side
from vtexport.eval.scenes import HELD_OUT_SEED

PATCH, GRID = 14, 24
SIDE = "side"  # the training-only step towards relations, in addition to TASKS
ASKED = (*TASKS, SIDE)
# How often a task is drawn; a digit or word that is there is asked about once in every picture anyway.
Weights = dict[str, float]
TASK_WEIGHTS: Weights = {
    "existence": 12, "colour": 9, "shape": 9, "counting": 22, "relation": 24, "grounding": 15, SIDE: 9
}  # fmt: skip
ENOUGH, UNSURE = 0.12, 0.0  # share of a patch that an item covers for the patch to be its; in between neither
SEEDS_A_STEP = 1024


@dataclass(frozen=True)
class Layout:
    """One sort of batch: `pictures` canvases of `side` x `side` patches with up to `max_shapes` shapes."""

    pictures: int
    side: int
    max_shapes: int


@dataclass
class Batch:
    """Data of one training step, for B pictures of N patches and T text tokens.

    `pixels` [B, S, S, 3] uint8; `origins` B x (x, y) in patches; `colour`, `kind` [B, N] int64 (the last class is none,
    -100 unsure); `box` [B, N, 4] steps, -100 off the items; `centre` [B, N] float, 1 where an item's centre is;
    `presence` [B, P] float; `covered` [B, N] bool. Text: `ids`, `turn`, `place`, `labels` [B, T] int64; `named` rows of
    (picture, text token, there, x0, y0, x1, y1); `answers` tuples (picture, task, first answer token, length).
    """

    pixels: torch.Tensor
    origins: list[tuple[int, int]]
    colour: torch.Tensor
    kind: torch.Tensor
    box: torch.Tensor
    centre: torch.Tensor
    presence: torch.Tensor
    covered: torch.Tensor
    ids: torch.Tensor
    turn: torch.Tensor
    place: torch.Tensor
    labels: torch.Tensor
    named: torch.Tensor
    answers: list[tuple[int, str, int, int]]


@dataclass
class Turns:
    """Packed turns of one picture. Each sees the picture and itself only, and its positions restart after the picture,
    so that a packed picture equals as many pictures with one question each."""

    ids: list[int]
    turn: list[int]
    place: list[int]
    labels: list[int]
    named: list[list[int]]
    answers: list[tuple[str, int, int]]


def pack(rng: random.Random, items: tuple[Item, ...], room: int, weights: Weights) -> Turns:
    """Questions about one picture, as many as `room` tokens hold, none twice."""
    packed = Turns([], [], [], [], [], [])
    seen: set[str] = set()
    first = [task for task in ("digit", "word") if any(item.kind == task for item in items)]
    for _ in range(4 * room):
        task = first.pop() if first else rng.choices(list(weights), list(weights.values()))[0]
        asked = ask_side(rng, items) if task == SIDE else ask(rng, items, task)
        if asked is None or asked.question.question in seen:
            if room - len(packed.ids) < 9:
                break
            continue
        seen.add(asked.question.question)
        if not _append(packed, task, asked, room):
            break
    rest = room - len(packed.ids)
    for row, filling in ((packed.ids, 3), (packed.turn, 0), (packed.place, 0), (packed.labels, words.IGNORED)):
        row += [filling] * rest
    return packed


def _append(packed: Turns, task: str, asked: Asked, room: int) -> bool:
    question, answer = words.question_ids(asked.question.question), words.answer_ids(asked.question)
    start, length = len(packed.ids), len(question) + len(answer) + 1
    if start + length > room:
        return False
    nouns = [start + i for i, token in enumerate(question) if token in words.NOUN_IDS]
    for token, item in zip(nouns, asked.named, strict=False):
        packed.named.append([token, int(item is not None), *(words.steps_of(item.box) if item else [0] * 4)])
    packed.answers.append((task, start + len(question), len(answer)))
    packed.ids += [*question, *answer, words.END]
    packed.turn += [len(packed.answers)] * length
    packed.place += range(length)
    packed.labels += [words.IGNORED] * (len(question) - 1) + [*answer, words.END] + [words.IGNORED]
    return True


def dense_labels(drawing: Drawing, side: int, origin: tuple[int, int]) -> dict[str, np.ndarray]:
    """Labels of a picture's patches [N], N = side * side, and of the picture as a whole (`presence`).

    `origin` is the place of its upper left patch in the frame (x, y).
    """
    items = drawing.items
    cells = drawing.labels.reshape(side, PATCH, side, PATCH)
    covers = np.stack([(cells == number + 1).mean((1, 3), dtype=np.float32).ravel() for number in range(len(items))])
    owner, share = covers.argmax(0), covers.max(0)
    colours = list(COLOURS)
    colour = np.array([colours.index(item.colour) if item.colour else len(colours) for item in items])
    kind = np.array([words.KINDS.index(item.name) for item in items])
    box = np.array([words.steps_of(item.box) for item in items])
    clear, unsure = share >= ENOUGH, (share > UNSURE) & (share < ENOUGH)
    labels = {
        "colour": np.where(clear, colour[owner], len(colours)),
        "kind": np.where(clear, kind[owner], len(words.KINDS)),
        "box": np.where(clear[:, None], box[owner], words.IGNORED),
        "covered": share > 0,
    }
    labels["colour"][unsure] = labels["kind"][unsure] = words.IGNORED
    # One mark an item, whatever its size, makes counting a matter of counting marks.
    centre = np.zeros(side * side, np.float32)
    for item in items:
        if item.colour:
            x, y = (int(value * GRID) - start for value, start in zip(item.centre, origin, strict=True))
            centre[y * side + x] = 1
    presence = np.zeros(len(colours) + len(words.KINDS) + len(words.PAIRS), np.float32)
    for item in items:
        presence[len(colours) + words.KINDS.index(item.name)] = 1
        if item.colour:
            presence[colours.index(item.colour)] = 1
            presence[len(colours) + len(words.KINDS) + words.PAIRS.index((item.colour, item.name))] = 1
    return {**labels, "centre": centre, "presence": presence}


def make_batch(seed: int, step: int, layout: Layout, room: int, weights: Weights = TASK_WEIGHTS) -> Batch:
    """The batch of a training step: the same for the same arguments. `room` text tokens a picture, 0 for none.

    Scene seeds stay below `HELD_OUT_SEED`. Raises ValueError where they would not.
    """
    base = ((seed << 22) + step) * SEEDS_A_STEP
    if not 0 <= base <= HELD_OUT_SEED - SEEDS_A_STEP or step >= 1 << 22 or layout.pictures >= SEEDS_A_STEP:
        raise ValueError(f"seed {seed}, step {step} and {layout.pictures} pictures leave the seeds of training")
    drawings, origins, rows, turns = [], [], [], []
    for number in range(layout.pictures):
        rng = random.Random(base + number)
        origin = rng.randint(0, GRID - layout.side), rng.randint(0, GRID - layout.side)
        pixels = layout.side * PATCH
        corner = origin[0] * PATCH, origin[1] * PATCH
        drawing = draw(rng, pixels, max_shapes=layout.max_shapes, origin=corner, frame=GRID * PATCH)
        drawings.append(drawing)
        origins.append(origin)
        rows.append(dense_labels(drawing, layout.side, origin))
        turns.append(pack(rng, drawing.items, room, weights))
    stacked = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    named = [[number, *row] for number, packed in enumerate(turns) for row in packed.named]
    return Batch(
        pixels=torch.from_numpy(np.stack([np.asarray(drawing.image) for drawing in drawings])),
        origins=origins,
        ids=torch.tensor([packed.ids for packed in turns], dtype=torch.int64),
        turn=torch.tensor([packed.turn for packed in turns], dtype=torch.int64),
        place=torch.tensor([packed.place for packed in turns], dtype=torch.int64),
        labels=torch.tensor([packed.labels for packed in turns], dtype=torch.int64),
        named=torch.tensor(named, dtype=torch.int64).reshape(-1, 7),
        answers=[(number, *answer) for number, packed in enumerate(turns) for answer in packed.answers],
        **stacked,
    )


class Feeder:
    """Renders the batches of the coming steps in a thread of its own. Iterate over it; `close` ends the thread."""

    def __init__(self, make: Callable[[int], Batch], first_step: int, ahead: int = 3):
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make, first_step), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[int], Batch], step: int) -> None:
        while not self._closed.is_set():
            made: Batch | BaseException
            try:
                made = make(step)
            except BaseException as error:
                made = error
            while not self._closed.is_set():
                try:
                    self._queue.put(made, timeout=0.5)
                    break
                except queue.Full:
                    continue
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        while True:
            made = self._queue.get()
            if isinstance(made, BaseException):
                raise made
            yield made

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
