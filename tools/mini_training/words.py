"""The vocabulary of `mini` as training needs it: token ids of questions, answers, colours, kinds and coordinates."""

from __future__ import annotations

from functools import lru_cache

import make_mini_tokenizer
from tokenizers import Tokenizer

from vtexport.eval.drawing import COLOURS, DIGITS, SHAPES, WORDS, Box
from vtexport.eval.questions import SceneQuestion

STEPS = make_mini_tokenizer.COORDINATE_STEPS
END, IGNORED = 2, -100  # </s>, and a label that no loss looks at
KINDS = (*SHAPES, *DIGITS, *WORDS)  # what a patch can belong to
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]

_tokenizer = Tokenizer.from_str(make_mini_tokenizer.text())
SIZE = _tokenizer.get_vocab_size()


def _ids(text: str) -> list[int]:
    return list(_tokenizer.encode(text, add_special_tokens=False).ids)


def _one(text: str) -> int:
    (only,) = _ids(text)
    return only


# What stands around the image in the chat template: "<s>USER: <image>\n".
BEFORE_IMAGE, AFTER_IMAGE = [1, *_ids("USER: ")], _ids("\n")
COLOUR_IDS = [_one(f" {name}") for name in COLOURS]
KIND_IDS = [_one(f" {name}") for name in KINDS]
COORDINATE_IDS = [[_one(text) for text in make_mini_tokenizer.coordinates(place)] for place in range(4)]
NOUN_IDS = {_one(f" {name}") for name in (*SHAPES, "object")}  # each names one item of the scene


def steps_of(box: Box) -> list[int]:
    """A box's coordinates as numbers of steps, 0 to `STEPS`."""
    return [min(STEPS, max(0, round(value * STEPS))) for value in box]


@lru_cache(maxsize=100_000)
def question_ids(question: str) -> list[int]:
    """The token ids of a question as they follow the image and the line break, up to the answer."""
    return _ids(f"{question} ASSISTANT:")


def answer_ids(question: SceneQuestion) -> list[int]:
    """The token ids of an answer, without the one that ends it. Boxes are rounded to half patches."""
    if question.box is None:
        return [_one(f" {question.answer}")]
    return [COORDINATE_IDS[place][step] for place, step in enumerate(steps_of(question.box))]


def decode(ids: list[int]) -> str:
    """The text of token ids."""
    return str(_tokenizer.decode(ids))
