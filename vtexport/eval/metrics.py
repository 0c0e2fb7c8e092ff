"""Scores of answers: exact match, VQA accuracy, boxes, yes or no; and the interval of a share.

Every score is from 0 to 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vtexport.eval.vqa_text import vqa_text

Box = tuple[float, float, float, float]  # x0, y0, x1, y1

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
IOU_THRESHOLD = 0.5  # of RefCOCO's accuracy (Yu et al., arXiv 1608.00272)
FEWEST_ANSWERS = 4  # a score of 1 takes three others that agree

_OPENING, _CLOSING = "\"'“‘([{", "\"'”’)]}.,;:!?"
_NUMBER = r"\s*(-?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def normalised(text: str) -> str:
    """For exact match: one case, single spaces, no quotes, brackets or punctuation around the whole."""
    return " ".join(text.split()).casefold().lstrip(_OPENING).rstrip(_CLOSING + " ").strip()


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same once `normalised`."""
    return float(normalised(answer) == normalised(reference))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy of one answer: the mean, over leaving out one annotator, of min(1, others who say the same / 3).

    Antol et al., arXiv 1505.00468, with the text processing of the TextVQA evaluation on both sides.
    """
    said, given = vqa_text(answer), [vqa_text(reference) for reference in references]
    agreeing = given.count(said)
    scores = [min(1.0, (agreeing - (reference == said)) / 3) for reference in given]
    return sum(scores) / len(scores)


def parse_box(text: str) -> Box | None:
    """The first `[x0, y0, x1, y1]` of a text, as LLaVA writes boxes; None where there is none."""
    found = _BOX.search(text)
    if found is None:
        return None
    x0, y0, x1, y1 = (float(number) for number in found.groups())
    return x0, y0, x1, y1


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; a box whose corners are the wrong way round has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0 or not (_is_box(a) and _is_box(b)):
        return 0.0
    overlap = width * height
    return overlap / (_area(a) + _area(b) - overlap)


def _is_box(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def says_yes(text: str) -> bool:
    """True where POPE (Li et al., arXiv 2305.10355) takes an answer for a yes: its evaluate.py, step by step.

    Only the first sentence counts, and everything that holds none of the words No, no and not is a yes. It is given
    answers without the space around them (LLaVA's model_vqa_loader.py), or "no" and a line end would be a yes.
    """
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def yes_no_word(text: str) -> bool | None:
    """True for a reference `yes`, False for `no`, None for another."""
    return {"yes": True, "no": False}.get(normalised(text))


def f1(true_positives: float, false_positives: float, false_negatives: float) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is a yes."""
    total = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / total if total else 0.0


def wilson(mean: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `count` independent samples (Wilson, 1927).

    For scores between 0 and 1 that are not only 0 or 1, as VQA accuracy, it is too wide rather than too narrow: no
    distribution on that range varies more than one of zeros and ones with the same mean.
    """
    spread = Z95**2 / count
    centre = (mean + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(mean * (1 - mean) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
