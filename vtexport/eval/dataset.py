"""Questions to a bundle: the rendered scenes, or a JSONL file with a question a line.

A line is an object with `image` (a path, relative to the file), `question`, and one of `answer` (a text to match),
`answers` (several people's, for VQA accuracy) or `box` (x0, y0, x1, y1 as shares of the image's width and height).
`task` groups lines in the report, `id` is shown in the records. Other fields are passed over, empty lines too. A line
that cannot be used is kept as a `BadLine`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vtexport.errors import InputError, UsageError, quoted
from vtexport.eval.metrics import FEWEST_ANSWERS, Box

SCENES = "scenes"
DEFAULT_SAMPLES = 1000  # questions about scenes where no limit is given: there are as many as one wants

Metric = Literal["exact match", "VQA accuracy", "IoU >= 0.5"]
_METRICS: dict[str, Metric] = {"answer": "exact match", "answers": "VQA accuracy", "box": "IoU >= 0.5"}
_TASKS: dict[Metric, str] = {"exact match": "questions", "VQA accuracy": "vqa", "IoU >= 0.5": "grounding"}


@dataclass(frozen=True, slots=True)
class Question:
    """One sample: what is asked, and what is right."""

    number: int  # the line in the file, or the question's place among those about scenes, from 1
    task: str
    metric: Metric
    question: str
    answer: str = ""
    answers: tuple[str, ...] = ()
    box: Box | None = None  # shares of the image's width and height
    id: str | None = None

    @property
    def expected(self) -> str | list[str | float]:
        """The reference that the metric compares with."""
        if self.box is not None:
            return list(self.box)
        return list(self.answers) or self.answer


@dataclass(frozen=True)
class BadLine:
    """A line that could not be used, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class ImageGroup:
    """An image with the questions about it that follow each other."""

    digest: str  # SHA-256 of the image's file, or of a rendered image's pixels
    image: Path | Image.Image
    questions: tuple[Question, ...]

    def digests(self) -> list[str]:
        """For each question a digest of all that makes the sample: image, question, reference, task."""
        return [
            hashlib.sha256(
                json.dumps([self.digest, q.task, q.metric, q.question, q.expected, q.id]).encode()
            ).hexdigest()
            for q in self.questions
        ]


@dataclass(frozen=True)
class Dataset:
    """Questions in order. `groups` reads or renders the images anew at each call, so none stay in memory.

    It can be pickled: workers open it again by `name` and `limit`.
    """

    name: str  # "scenes" or the file's path
    limit: int | None
    most: int  # questions at most, for progress
    bad: tuple[BadLine, ...]
    _groups: Callable[[], Iterator[ImageGroup | BadLine]]

    def groups(self) -> Iterator[ImageGroup | BadLine]:
        """Images with their questions; a bad line for each question about an image that cannot be read."""
        return self._groups()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_dataset, (self.name, self.limit)


def open_dataset(name: str, limit: int | None = None) -> Dataset:
    """The rendered scenes (`scenes`), or the questions of a JSONL file.

    Args:
        name: "scenes" or a path.
        limit: use the first so many usable questions only.

    Raises:
        UsageError: the limit is not a positive number.
        InputError: there is no such file, or nothing in it can be used.
    """
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise UsageError(f"the limit is {limit}; give a whole number from 1")
    if name == SCENES:
        most = limit or DEFAULT_SAMPLES
        return Dataset(SCENES, limit, most, (), functools.partial(_scenes, most))
    return _open_jsonl(Path(name), limit)


def _scenes(most: int) -> Iterator[ImageGroup | BadLine]:
    from vtexport.eval.scenes import held_out_scenes

    number = 0
    for scene in held_out_scenes(most):  # there is a question about each, so these suffice
        questions = []
        for asked in scene.questions[: most - number]:
            number += 1
            if asked.box is None:
                question = Question(number, asked.task, _METRICS["answer"], asked.question, answer=asked.answer)
            else:
                question = Question(number, asked.task, _METRICS["box"], asked.question, box=asked.box)
            questions.append(question)
        digest = hashlib.sha256(repr((scene.image.mode, scene.image.size)).encode() + scene.image.tobytes()).hexdigest()
        if questions:
            yield ImageGroup(digest, scene.image, tuple(questions))
        if number >= most:
            return


def _open_jsonl(path: Path, limit: int | None) -> Dataset:
    questions: list[tuple[str, Question]] = []
    bad: list[BadLine] = []
    metrics: dict[str, tuple[Metric, int]] = {}  # of each task, and the line that set it
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and len(questions) == limit:
                    break
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                try:
                    image, question = _parse(number, line)
                    metric, first = metrics.setdefault(question.task, (question.metric, number))
                    if metric != question.metric:
                        raise _BadLineError(
                            f"task {question.task!r} is scored by {metric} since line {first} and this line by "
                            f"{question.metric}; give it another task"
                        )
                except _BadLineError as error:
                    bad.append(BadLine(number, str(error)))
                else:
                    questions.append((image, question))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a JSONL file, or scenes for the rendered ones") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a JSONL file") from error
    if not questions:
        first_bad = f": line {bad[0].number}: {bad[0].reason}" if bad else ", it is empty"
        raise InputError(f"{path} holds no line that can be used{first_bad}")
    groups = functools.partial(_files, path.parent, questions)
    return Dataset(str(path), limit, len(questions), tuple(bad), groups)


def _files(folder: Path, questions: list[tuple[str, Question]]) -> Iterator[ImageGroup | BadLine]:
    for image, lines in itertools.groupby(questions, key=lambda each: each[0]):
        path = folder / image
        asked = tuple(question for _, question in lines)
        try:
            # Not read where it is no plain file: a pipe would wait for ever.
            data = path.read_bytes() if path.is_file() else None
            reason = "it does not exist or is no file"
        except OSError as error:
            data, reason = None, error.strerror or str(error)
        if data is not None:
            yield ImageGroup(hashlib.sha256(data).hexdigest(), path, asked)
        else:
            yield from (BadLine(each.number, f"its image {path} cannot be read: {reason}") for each in asked)


class _BadLineError(Exception):
    """The reason why a line cannot be used."""


def _parse(number: int, line: bytes) -> tuple[str, Question]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8, or a number of too many digits
        raise _BadLineError(f"it is not JSON in UTF-8 ({quoted(error)})") from error
    if not isinstance(value, dict):
        raise _BadLineError(f"it is not a JSON object but {_shown(value)}")
    image, question = _text(value, "image"), _text(value, "question")
    given = [name for name in _METRICS if value.get(name) is not None]
    if len(given) != 1:
        found = f"it has {' and '.join(given)}" if given else "it has none of answer, answers and box"
        raise _BadLineError(f"{found}; give one of them")
    metric = _METRICS[given[0]]
    task = _text(value, "task") if value.get("task") is not None else _TASKS[metric]
    name = None if value.get("id") is None else str(value["id"])
    return sys.intern(image), Question(
        number, sys.intern(task), metric, question, id=name, **_reference(value, given[0])
    )


def _reference(value: dict[str, Any], kind: str) -> dict[str, Any]:
    given = value[kind]
    if kind == "answer":
        return {"answer": _text(value, "answer")}
    if kind == "answers":
        if not isinstance(given, list) or not all(_is_text(each) for each in given):
            raise _BadLineError(f"answers is {_shown(given)}; give a list of texts")
        if len(given) < FEWEST_ANSWERS:
            raise _BadLineError(
                f"answers holds {len(given)}, and VQA accuracy needs {FEWEST_ANSWERS} or more (the benchmarks have "
                "10); give a single reference as answer"
            )
        return {"answers": tuple(map(sys.intern, given))}  # the same few words in hundreds of thousands of lines
    # NaN is in no range, so the comparisons refuse it.
    numbers = isinstance(given, list) and len(given) == 4 and all(_is_number(each) for each in given)
    if not numbers or not (0 <= given[0] < given[2] <= 1 and 0 <= given[1] < given[3] <= 1):
        raise _BadLineError(
            f"box is {_shown(given)}; give x0, y0, x1, y1 with x0 < x1 and y0 < y1, as shares from 0 to 1 of the "
            "image's width and height"
        )
    return {"box": tuple(float(each) for each in given)}


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is None:
        raise _BadLineError(f"it has no {name}")
    if not _is_text(text) or not text.strip():
        raise _BadLineError(f"{name} is {_shown(text)}; give a text")
    return text


def _is_text(value: Any) -> bool:
    """JSON can write half a character, a lone surrogate, which no tokenizer takes."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
