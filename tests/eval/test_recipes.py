"""The snippets of docs/datasets.md, run on invented samples in the benchmarks' own formats."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtexport.eval.dataset import BadLine, ImageGroup, Question, open_dataset

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
SHORT = "\nAnswer the question using a single word or phrase."


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, value: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def put_image(name: str, size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (1, 2, 3)) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(name)


def converted(benchmark: str, written: str) -> list[tuple[Path, Question]]:
    """Runs a benchmark's snippet, and opens what it wrote: image and question of each line."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {benchmark}\n")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(snippet, f"{PAGE.name}, {benchmark}", "exec"), {})
    assert f"--dataset {written} " in section
    dataset = open_dataset(written)
    assert dataset.bad == ()
    found = []
    for group in dataset.groups():
        assert not isinstance(group, BadLine), group
        assert isinstance(group, ImageGroup)
        assert isinstance(group.image, Path)
        found += [(group.image, question) for question in group.questions]
    return found


def test_gqa() -> None:
    common = {"isBalanced": True, "groups": {"global": None, "local": "13-pot"}, "types": {"structural": "query"}}
    put(
        "questions1.2/testdev_balanced_questions.json",
        {
            "201640614": {
                **common, "semantic": [{"operation": "select", "dependencies": [], "argument": "shirt (1)"}],
                "entailed": [], "equivalent": ["201640614"], "question": "Who is wearing the shirt?",
                "imageId": "n578822", "answer": "girl", "fullAnswer": "The girl is wearing a shirt.",
                "annotations": {}, "semanticStr": "select: shirt (1)",
            },
            "20602949": {**common, "question": "Is it overcast?", "imageId": "n161313", "answer": "no"},
            "201640615": {**common, "question": "Is she tall?", "imageId": "n578822", "answer": "yes"},
        },
    )  # fmt: skip
    put_image("images/n578822.jpg")
    put_image("images/n161313.jpg")
    asked = converted("GQA", "gqa.jsonl")
    assert [(image.name, q.id, q.question, q.expected, q.metric, q.task) for image, q in asked] == [
        ("n161313.jpg", "20602949", "Is it overcast?" + SHORT, "no", "exact match", "gqa"),
        ("n578822.jpg", "201640614", "Who is wearing the shirt?" + SHORT, "girl", "exact match", "gqa"),
        ("n578822.jpg", "201640615", "Is she tall?" + SHORT, "yes", "exact match", "gqa"),
    ]


def test_pope() -> None:
    for task in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dog?", "label": "yes"},
            {"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a cup?", "label": "no"},
        ]
        put(f"coco_pope_{task}.json", "".join(json.dumps(line) + "\n" for line in lines))
    put_image("val2014/COCO_val2014_000000310196.jpg")
    asked = converted("POPE", "pope.jsonl")
    assert [(q.task, q.id, q.expected) for _, q in asked] == [
        (task, name, answer)
        for task in ("random", "popular", "adversarial")
        for name, answer in (("1", "yes"), ("2", "no"))
    ]
    assert asked[0][1].question == "Is there a dog?" + SHORT


def test_textvqa() -> None:
    answers = ["nokia"] * 8 + ["toshiba", "Nokia"]
    entry = {
        "question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901", "image_width": 1024,
        "image_height": 664, "image_classes": ["Camera"], "question_tokens": ["what"], "question_id": 34602,
        "set_name": "val", "flickr_original_url": "", "flickr_300k_url": "", "answers": answers,
    }  # fmt: skip
    put("TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": [entry]})
    put_image("train_images/003a8ae2ef43b901.jpg")
    ((_, question),) = converted("TextVQA", "textvqa.jsonl")
    assert question.question == "what is the brand of this camera?" + SHORT
    assert (question.expected, question.metric, question.id) == (answers, "VQA accuracy", "34602")


def test_vqav2() -> None:
    said = [{"answer": "down", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    put(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        {
            "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": "val2014",
            "questions": [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}],
        },
    )  # fmt: skip
    annotation = {
        "question_type": "none of the above", "multiple_choice_answer": "down", "answers": said, "image_id": 262148,
        "answer_type": "other", "question_id": 262148000,
    }  # fmt: skip
    put("v2_mscoco_val2014_annotations.json", {"info": {}, "license": {}, "annotations": [annotation]})
    put_image("val2014/COCO_val2014_000000262148.jpg")
    ((_, question),) = converted("VQAv2", "vqav2.jsonl")
    assert (question.expected, question.metric) == (["down"] * 10, "VQA accuracy")


def test_refcoco() -> None:
    """A wide picture is padded above and below, and the box is where it was."""
    sentences = [
        {"tokens": ["the", "cup"], "raw": "the cup", "sent_id": 7, "sent": "the cup"},
        {"tokens": ["left"], "raw": "Left!", "sent_id": 8, "sent": "left"},
    ]
    ref = {
        "sent_ids": [7, 8], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0,
        "image_id": 581857, "split": "testA", "sentences": sentences, "category_id": 1,
    }  # fmt: skip
    Path("refs(unc).p").write_bytes(pickle.dumps([{**ref, "split": "train"}, ref], protocol=0))
    name = "COCO_train2014_000000581857.jpg"
    image = {"id": 581857, "file_name": name, "width": 80, "height": 40, "license": 1, "coco_url": ""}
    annotation = {"id": 1719310, "image_id": 581857, "bbox": [20.0, 10.0, 40.0, 20.0], "category_id": 1, "area": 800}
    put("instances.json", {"images": [image], "annotations": [annotation], "categories": [], "info": {}})
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[10:30, 20:60] = 255
    Path("train2014").mkdir()
    Image.fromarray(pixels).save(f"train2014/{name}", quality=95)
    asked = converted("RefCOCO", "refcoco_testA.jsonl")
    assert [(q.id, q.question.rpartition(": ")[2]) for _, q in asked] == [("7", "the cup"), ("8", "left")]
    path, question = asked[0]
    assert question.box == pytest.approx((0.25, 0.375, 0.75, 0.625))
    padded = np.asarray(Image.open(path))
    assert padded.shape == (80, 80, 3)
    assert tuple(padded[0, 0]) == (122, 116, 104)
    x0, y0, x1, y1 = (round(80 * share) for share in question.box or ())
    inside = np.zeros((80, 80), dtype=bool)
    inside[y0:y1, x0:x1] = True
    picture = slice(20, 60)  # its rows
    assert padded[inside].min() > 200
    assert padded[picture][~inside[picture]].max() < 60
