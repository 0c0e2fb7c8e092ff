"""A bundle as a model of lmms-eval, by that package's own registry, task manager and evaluator.

It needs lmms-eval 0.7, which brings some 130 packages; docs/eval.md says how to install it beside torch's CPU build.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vtexport.errors import UsageError
from vtexport.runtime.pipeline import Pipeline

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; docs/eval.md says how to install it")

TASK = """\
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
task: vtexport_tiny
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_visual: !function tiny_task.images
generation_kwargs:
  max_new_tokens: 5
  temperature: 0
  num_beams: 1
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
from PIL import Image

def images(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""
QUESTIONS = ["What is this?", "Is there a cup?", "What colour is it?", "How many are there?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: Path, tiny_bundle: Path) -> Path:
    """A task of four documents; the reference of two is what the bundle answers, so its score is one half."""
    folder = tmp_path_factory.mktemp("task")
    pipeline = Pipeline.open(tiny_bundle, "prunesid-16")
    rows = []
    for number, question in enumerate(QUESTIONS):
        said = pipeline.generate(photo, question, max_new_tokens=5).text
        rows.append({"image": str(photo), "question": question, "answer": said if number % 2 else "something else"})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tiny.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    (folder / "tiny_task.py").write_text(FUNCTIONS)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def model(folder: Path, **given: Any) -> Any:
    from vtexport.integrations.lmms_eval import VtexportModel

    return VtexportModel(**{"bundle": str(folder), "plan": "prunesid-16", **given})


def request(lm: Any, images: Any, options: dict[str, Any], question: str = "What is this?") -> Any:
    from lmms_eval.api.instance import Instance

    lm.task_dict = {"task": {"test": [{}]}}
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    arguments = (question, options, lambda doc: images, 0, "task", "test")
    return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)


def test_the_entry_point_names_the_model() -> None:
    (found,) = [e for e in importlib.metadata.entry_points(group="lmms_eval.models") if e.name == "vtexport"]
    assert found.value == "vtexport.integrations.lmms_eval:manifest"


def test_the_registry_finds_the_model() -> None:
    from lmms_eval.models import get_model

    from vtexport.integrations.lmms_eval import VtexportModel

    assert get_model("vtexport") is VtexportModel


def test_a_tiny_task_by_lmms_evals_own_evaluator(tiny_bundle: Path, folder: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    found = simple_evaluate(
        model="vtexport",
        model_args=f"bundle={tiny_bundle},plan=prunesid-16",
        tasks=["vtexport_tiny"],
        batch_size=1,
        task_manager=TaskManager(include_path=str(folder)),
        log_samples=True,
        bootstrap_iters=0,
    )
    assert found["results"]["vtexport_tiny"]["exact_match,none"] == 0.5
    samples = found["samples"]["vtexport_tiny"]
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2, 3]


def test_answers_are_the_pipelines(tiny_bundle: Path, photo: Path) -> None:
    lm = model(tiny_bundle)
    image = Image.open(photo)
    wanted = Pipeline.open(tiny_bundle, "prunesid-16").generate(photo, "What is this?", max_new_tokens=7)
    (result,) = lm.generate_until([request(lm, [image], {"max_new_tokens": 7})])
    assert result.text == wanted.text
    assert result.token_counts.input_tokens == wanted.prompt_tokens
    assert result.token_counts.output_tokens == len(wanted.token_ids)
    # the placeholder that some tasks write for the image is the template's business
    (same,) = lm.generate_until([request(lm, [image], {"max_new_tokens": 7}, "<image>\nWhat is this?")])
    assert same.text == wanted.text
    cut = wanted.text[2:4]
    (short,) = lm.generate_until([request(lm, [image], {"max_new_tokens": 7, "until": [cut, "never"]})])
    assert short.text == wanted.text[: wanted.text.find(cut)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bundle": ""}, "give --model_args bundle=FOLDER"),
        ({"batch_size": 2}, "batch_size is 2"),
        ({"plan": "x"}, "has no plan 'x'"),
        ({"device": "abacus:0"}, "device 'abacus' is not known"),
    ],
)
def test_wrong_arguments(tiny_bundle: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model(tiny_bundle, **given)


def test_several_processes_are_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start one"):
        model(tiny_bundle)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_number_of_images_a_question(tiny_bundle: Path, photo: Path, count: int) -> None:
    lm = model(tiny_bundle)
    wanted = Pipeline.open(tiny_bundle, "prunesid-16").generate([photo] * count, "What is this?", max_new_tokens=7)
    forms: list[Any] = [[Image.open(photo)] * count]
    if not count:
        forms += [None, [None]]
    elif count == 1:
        forms.append(Image.open(photo))
    for images in forms:
        (result,) = lm.generate_until([request(lm, images, {"max_new_tokens": 7})])
        assert result.text == wanted.text
        assert result.token_counts.input_tokens == wanted.prompt_tokens


def test_an_image_that_is_missing(tiny_bundle: Path, photo: Path) -> None:
    lm = model(tiny_bundle)
    with pytest.raises(UsageError, match="document 0 of task has 2 images, of which 1 are None"):
        lm.generate_until([request(lm, [Image.open(photo), None], {"max_new_tokens": 2})])


def test_what_a_bundle_does_not_do(tiny_bundle: Path, photo: Path) -> None:
    lm = model(tiny_bundle)
    with pytest.raises(UsageError, match="num_beams=4"):
        lm.generate_until([request(lm, [Image.open(photo)], {"max_new_tokens": 2, "num_beams": 4})])
    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        lm.generate_until([request(lm, [Image.open(photo)], {"max_new_tokens": 2, "image_aspect_ratio": "pad"})])
    with pytest.raises(NotImplementedError, match="generate_until variant"):
        lm.loglikelihood([])
    with pytest.raises(NotImplementedError, match="without several rounds"):
        lm.generate_until_multi_round([])
