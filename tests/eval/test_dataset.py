"""Datasets: lines that can be used, lines that cannot and why, scenes, digests of samples."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.errors import InputError, UsageError
from vtexport.eval.dataset import BadLine, Dataset, ImageGroup, Question, open_dataset
from vtexport.eval.scenes import held_out_scenes

WriteLines = Callable[..., Path]
GOOD = {"image": "0.png", "question": "What is it?", "answer": "red"}


def questions(dataset: Dataset) -> list[Question]:
    return [question for group in dataset.groups() if isinstance(group, ImageGroup) for question in group.questions]


def keys(dataset: Dataset) -> list[str]:
    return [key for group in dataset.groups() if isinstance(group, ImageGroup) for key in group.digests()]


def test_the_three_kinds_of_reference(write_lines: WriteLines) -> None:
    path = write_lines(
        GOOD,
        {"image": "0.png", "question": "b?", "answers": ["red"] * 10, "id": 7},
        {"image": "1.png", "question": "c?", "box": [0, 0.5, 1, 0.75], "other": "passed over"},
        {"image": "1.png", "question": "d?", "answer": "yes", "task": "existence"},
    )
    dataset = open_dataset(str(path))
    assert dataset.bad == ()
    assert dataset.most == 4
    assert [(q.number, q.task, q.metric, q.expected, q.id) for q in questions(dataset)] == [
        (1, "questions", "exact match", "red", None),
        (2, "vqa", "VQA accuracy", ["red"] * 10, "7"),
        (3, "grounding", "IoU >= 0.5", [0, 0.5, 1, 0.75], None),
        (4, "existence", "exact match", "yes", None),
    ]
    groups = list(dataset.groups())
    assert [len(group.questions) for group in groups if isinstance(group, ImageGroup)] == [2, 2]  # one look an image


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not JSON in UTF-8"),
        ('{"image": "0.png"', "not JSON in UTF-8"),
        ("9" * 5000, "not JSON in UTF-8"),
        ("[" * 100_000, "not JSON in UTF-8"),
        ("[1]", "not a JSON object but [1]"),
        ({"question": "x", "answer": "y"}, "it has no image"),
        ({"image": "0.png", "answer": "y"}, "it has no question"),
        ({"image": 3, "question": "x", "answer": "y"}, "image is 3; give a text"),
        ({"image": "0.png", "question": " ", "answer": "y"}, 'question is " "; give a text'),
        ({"image": "0.png", "question": "x"}, "none of answer, answers and box"),
        ({"image": "0.png", "question": "x", "answer": "y", "box": [0, 0, 1, 1]}, "it has answer and box"),
        ({"image": "0.png", "question": "x", "answer": 3}, "answer is 3; give a text"),
        ({"image": "0.png", "question": "x", "answer": "\ud800"}, 'answer is "\\ud800"; give a text'),
        ({"image": "0.png", "question": "x", "answers": "red"}, 'answers is "red"; give a list of texts'),
        ({"image": "0.png", "question": "x", "answers": ["red"] * 3}, "answers holds 3, and VQA accuracy needs 4"),
        ({"image": "0.png", "question": "x", "box": [10, 20, 30, 40]}, "box is [10, 20, 30, 40]; give x0, y0"),
        ({"image": "0.png", "question": "x", "box": [0.5, 0, 0.5, 1]}, "with x0 < x1"),
        ({"image": "0.png", "question": "x", "box": [0, 0, 1]}, "give x0, y0, x1, y1"),
        ({"image": "0.png", "question": "x", "box": [0, 0, 1, True]}, "give x0, y0, x1, y1"),
        ({"image": "0.png", "question": "x", "box": [0, float("nan"), 1, 1]}, "box is [0, NaN, 1, 1]"),
        ({"image": "0.png", "question": "x", "answer": "y", "task": 3}, "task is 3; give a text"),
        (
            {"image": "0.png", "question": "x", "box": [0, 0, 1, 1], "task": "questions"},
            "task 'questions' is scored by exact match since line 1 and this line by IoU >= 0.5",
        ),
    ],
)
def test_a_bad_line_is_named(line: Any, reason: str, write_lines: WriteLines) -> None:
    dataset = open_dataset(str(write_lines(GOOD, line, GOOD)))
    (bad,) = dataset.bad
    assert bad.number == 2
    assert reason in bad.reason
    assert [question.number for question in questions(dataset)] == [1, 3]


def test_bytes_that_are_no_text(write_lines: WriteLines) -> None:
    path = write_lines(GOOD, GOOD)
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    assert [bad.number for bad in open_dataset(str(path)).bad] == [1]


def test_empty_lines_a_byte_order_mark_and_windows_ends(write_lines: WriteLines) -> None:
    path = write_lines(GOOD, "", GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"  \n\n")
    dataset = open_dataset(str(path))
    assert dataset.bad == ()
    assert [question.number for question in questions(dataset)] == [1, 3]


@pytest.mark.parametrize("image", ["nowhere.png", ".", "a\0b", "x" * 5000])
def test_an_image_that_cannot_be_read_is_a_bad_line(image: str, write_lines: WriteLines) -> None:
    dataset = open_dataset(str(write_lines(GOOD, {**GOOD, "image": image}, {**GOOD, "image": image})))
    bad = [group for group in dataset.groups() if isinstance(group, BadLine)]
    assert [line.number for line in bad] == [2, 3]
    assert "cannot be read" in bad[0].reason
    assert len(questions(dataset)) == 1


def test_a_pipe_is_not_waited_for(write_lines: WriteLines) -> None:
    path = write_lines({**GOOD, "image": "pipe"})
    os.mkfifo(path.parent / "pipe")
    assert isinstance(next(iter(open_dataset(str(path)).groups())), BadLine)


def test_the_limit_counts_lines_that_can_be_used(write_lines: WriteLines) -> None:
    path = write_lines(GOOD, "x", GOOD, "y", GOOD)
    dataset = open_dataset(str(path), 2)
    assert [question.number for question in questions(dataset)] == [1, 3]
    assert [bad.number for bad in dataset.bad] == [2]
    for limit in (0, -3):
        with pytest.raises(UsageError, match=f"the limit is {limit}; give a whole number from 1"):
            open_dataset(str(path), limit)


def test_files_that_give_nothing(write_lines: WriteLines, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no line that can be used: line 1: it is not JSON"):
        open_dataset(str(write_lines("x")))
    with pytest.raises(InputError, match="holds no line that can be used, it is empty"):
        open_dataset(str(write_lines()))
    with pytest.raises(InputError, match=r"nowhere.jsonl does not exist; give a JSONL file, or scenes"):
        open_dataset(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError, match="Is a directory"):
        open_dataset(str(tmp_path))


def test_a_samples_digest_covers_all_of_it(write_lines: WriteLines) -> None:
    box = {"image": "0.png", "question": "x", "box": [0, 0, 1, 1]}
    first = keys(open_dataset(str(write_lines(GOOD, box))))
    assert keys(open_dataset(str(write_lines(box, GOOD)))) == first[::-1]  # its place does not count
    for changed in (
        {**GOOD, "image": "1.png"},
        {**GOOD, "question": "Why?"},
        {**GOOD, "answer": "blue"},
        {**GOOD, "task": "colour"},
        {**GOOD, "id": "a"},
    ):
        assert keys(open_dataset(str(write_lines(changed))))[0] not in first
    path = write_lines(GOOD)
    (path.parent / "0.png").write_bytes((path.parent / "1.png").read_bytes())
    assert keys(open_dataset(str(path)))[0] not in first


def test_scenes() -> None:
    dataset = open_dataset("scenes", 20)
    asked = questions(dataset)
    assert [question.number for question in asked] == list(range(1, 21))
    shown = [question for scene in held_out_scenes(20) for question in scene.questions][:20]
    assert [question.question for question in asked] == [question.question for question in shown]
    assert {question.metric for question in asked if question.task == "grounding"} == {"IoU >= 0.5"}
    assert {question.metric for question in asked if question.task != "grounding"} == {"exact match"}
    assert keys(dataset) == keys(open_dataset("scenes", 20))
    assert len(set(keys(dataset))) == 20
    assert keys(open_dataset("scenes", 7)) == keys(dataset)[:7]


def test_a_dataset_travels_to_other_processes(write_lines: WriteLines) -> None:
    for dataset in (open_dataset("scenes", 5), open_dataset(str(write_lines(GOOD, "x", GOOD)), 1)):
        again = pickle.loads(pickle.dumps(dataset))
        assert keys(again) == keys(dataset)
        assert (again.bad, again.most) == (dataset.bad, dataset.most)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=8,
)
fields = st.sampled_from(["image", "question", "answer", "answers", "box", "task", "id", "x"])


@given(line=st.dictionaries(fields, json_values))
def test_any_object_is_used_or_named(line: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(line) + "\n")
    dataset = open_dataset(str(path))
    assert len(dataset.bad) + dataset.most == 2
    assert copy.copy(dataset).most == dataset.most
