"""Evaluating a bundle: scores, retention on the same samples, runs that go on, bundles that changed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vtexport.eval.answering as answering
import vtexport.eval.evaluate as evaluating
from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError, InputError, MissingDependencyError, UsageError, VtexportError
from vtexport.eval.answering import Settings, answer_all, tokens_per_layer
from vtexport.eval.dataset import open_dataset
from vtexport.eval.evaluate import evaluate
from vtexport.eval.records import Header, Records, RecordsInUseError
from vtexport.eval.report import Report
from vtexport.runtime.answers import Answer
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.stages import Stages

NEW_TOKENS = 5
SETTINGS = Settings(max_new_tokens=NEW_TOKENS, threads=1)
WriteLines = Callable[..., Path]


def run(
    bundle: Path, plans: list[str], data: Path, folder: Path, settings: Settings = SETTINGS, **given: Any
) -> Report:
    return evaluate(open_bundle(bundle), plans, open_dataset(str(data), **given), settings, folder)


def record_files(folder: Path) -> list[Path]:
    return sorted((folder / "records").iterdir())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plans of all answers that are recorded from here on."""
    plans: list[str] = []
    add = Records.add

    def noting(self: Records, record: Any) -> None:
        plans.append(record.plan)
        add(self, record)

    monkeypatch.setattr(Records, "add", noting)
    return plans


def test_accuracy_and_retention(eval_bundle: Path, known_answers: Path, tmp_path: Path) -> None:
    report = run(eval_bundle, ["none", "prunesid-16"], known_answers, tmp_path / "out")
    assert (report.samples, report.images, report.unpruned, report.bad_lines) == (9, 3, "none", [])
    assert "model.safetensors" in report.source["files"]
    whole, pruned = report.plans
    task = whole.tasks["questions"]
    assert task.samples == 9
    assert task.accuracy.value == pytest.approx(2 / 3)
    assert 0.35 < task.accuracy.low < 2 / 3 < task.accuracy.high < 0.9
    assert task.retention is None
    assert whole.visual_tokens == whole.tokens_per_layer == 64
    assert pruned.visual_tokens == pruned.tokens_per_layer == 16
    # what the pruned plan gets right, counted from its own answers
    lines = [json.loads(line) for line in known_answers.read_text().splitlines()]
    pipeline = Pipeline.open(eval_bundle, "prunesid-16")
    texts = [
        pipeline.generate(known_answers.parent / line["image"], line["question"], max_new_tokens=NEW_TOKENS).text
        for line in lines
    ]
    right = sum(answering.exact_match(text, line["answer"]) for text, line in zip(texts, lines, strict=True))
    assert pruned.tasks["questions"].accuracy.value == pytest.approx(right / 9)
    retention = pruned.tasks["questions"].retention
    assert retention is not None
    assert retention.value == pytest.approx(right / 6)
    assert retention.low <= retention.value <= retention.high
    assert (
        0 < pruned.times_ms.prefill < pruned.times_ms.first_token < pruned.times_ms.total <= pruned.times_ms.total_p95
    )


def test_a_second_run_asks_nothing(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(eval_bundle, ["none", "prunesid-8"], known_answers, tmp_path / "out")
    assert len(asked) == 18
    monkeypatch.setattr(answering, "Pipeline", None)  # not even opened
    second = run(eval_bundle, ["none", "prunesid-8"], known_answers, tmp_path / "out")
    assert second.plans == first.plans
    assert len(asked) == 18


def test_a_run_goes_on_where_one_ended(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str]
) -> None:
    run(eval_bundle, ["prunesid-8"], known_answers, tmp_path / "out", limit=4)
    (path,) = record_files(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-10])  # it was killed while it wrote the fourth
    asked.clear()
    report = run(eval_bundle, ["prunesid-8"], known_answers, tmp_path / "out")
    assert len(asked) == 6
    assert report.samples == 9
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()[1:]] == list(range(1, 10))
    fresh = run(eval_bundle, ["prunesid-8"], known_answers, tmp_path / "fresh")
    assert fresh.plans[0].tasks == report.plans[0].tasks


def test_changed_samples_are_asked_again(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str]
) -> None:
    before = run(eval_bundle, ["none"], known_answers, tmp_path / "out")
    lines = known_answers.read_text().splitlines()
    changed = json.loads(lines[2]) | {"answer": "another"}
    known_answers.write_text("\n".join([*lines[:2], json.dumps(changed), *lines[3:]]))
    (known_answers.parent / "2.png").write_bytes((known_answers.parent / "1.png").read_bytes())
    asked.clear()
    report = run(eval_bundle, ["none"], known_answers, tmp_path / "out")
    assert len(asked) == 1 + 3
    assert report.samples == before.samples
    assert report.plans[0].tasks["questions"].samples == 9


def test_settings_do_not_mix(eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str]) -> None:
    for changed in ({}, {"max_new_tokens": 3}, {"logits_processors": False}, {"threads": 2}):
        run(eval_bundle, ["none"], known_answers, tmp_path / "out", dataclasses.replace(SETTINGS, **changed), limit=2)
    assert len(asked) == 8
    assert len(record_files(tmp_path / "out")) == 4


def test_the_checkpoints_processors_answer_unless_left_out(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str]
) -> None:
    path = Path(shutil.copytree(eval_bundle, tmp_path / "suppressing")) / "manifest.json"
    first = Pipeline.open(eval_bundle, "none").generate(tmp_path / "0.png", "What is this?", max_new_tokens=1).token_ids
    path.write_text(json.dumps({**json.loads(path.read_text()), "generation": {"suppress_tokens": first}}))
    with_them = run(path.parent, ["none"], known_answers, tmp_path / "out")
    without = run(
        path.parent, ["none"], known_answers, tmp_path / "out", dataclasses.replace(SETTINGS, logits_processors=False)
    )
    assert len(asked) == 18
    assert with_them.plans[0].tasks["questions"].accuracy.value < 2 / 3
    assert without.plans[0].tasks["questions"].accuracy.value == pytest.approx(2 / 3)
    assert (with_them.settings["logits_processors"], without.settings["logits_processors"]) == (True, False)


def test_bundles_do_not_mix(eval_bundle: Path, known_answers: Path, tmp_path: Path, asked: list[str]) -> None:
    """Another bundle of the same name with a plan of the same name, of other weights."""
    bundle, dataset = open_bundle(eval_bundle), open_dataset(str(known_answers), 2)
    other = open_bundle(eval_bundle)
    for name, file in other.manifest.files.items():
        if name.endswith(".safetensors"):
            file.sha256 = "0" * 64
    for each in (bundle, other):
        evaluate(each, ["none"], dataset, SETTINGS, tmp_path / "out")
    assert len(asked) == 4
    assert len(record_files(tmp_path / "out")) == 2


def test_bad_lines_are_counted_and_left_out_everywhere(
    eval_bundle: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    good = {"image": "0.png", "question": "What is this?", "answer": "x"}
    path = write_lines(
        good,
        "not json",
        {**good, "image": "nowhere.png"},
        {**good, "image": "text.png"},
        {**good, "question": "z" * 190},  # a token a letter: beyond the model's 256 positions, with 8 visual tokens not
        {**good, "question": "<image> what?"},
    )
    (path.parent / "text.png").write_text("no picture")
    report = run(eval_bundle, ["none", "prunesid-8"], path, tmp_path / "out")
    assert [bad["line"] for bad in report.bad_lines] == [2, 3, 4, 5, 6]
    reasons = " ".join(bad["reason"] for bad in report.bad_lines)
    for said in ("not JSON", "nowhere.png", "not an image", "positions", "the prompt contains <image>"):
        assert said in reasons
    assert report.samples == 1
    assert [plan.tasks["questions"].samples for plan in report.plans] == [1, 1]
    answered = [path.read_text().count('"number":5') for path in record_files(tmp_path / "out")]
    assert answered == [0, 1]  # none, prunesid-8


def test_nothing_that_can_be_asked(eval_bundle: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines({"image": "nowhere.png", "question": "x", "answer": "y"})
    with pytest.raises(InputError, match=r"none answered none of the questions .*; line 1: its image .*nowhere.png"):
        run(eval_bundle, ["none"], path, tmp_path / "out")


@pytest.mark.parametrize(
    ("plans", "changed", "message"),
    [
        (["x"], {}, "has no plan 'x'"),
        ([], {}, "no plan to ask"),
        (["none"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["none"], {"jobs": 0}, "jobs is 0"),
        (["none"], {"threads": 0}, "threads is 0"),
        (["none"], {"device": "abacus"}, "device 'abacus' is not known"),
    ],
)
def test_wrong_values(
    plans: list[str], changed: dict[str, Any], message: str, eval_bundle: Path, known_answers: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(eval_bundle, plans, known_answers, tmp_path / "out", dataclasses.replace(SETTINGS, **changed))


def test_boxes_count_in_the_whole_image(
    eval_bundle: Path, write_lines: WriteLines, tmp_path: Path, monkeypatch: Any
) -> None:
    """The model sees the middle square of a wide picture: a box that fills it is the middle of the image."""
    path = write_lines(
        {"image": "0.png", "question": "Where?", "box": [20 / 130, 0, 110 / 130, 1]},
        {"image": "0.png", "question": "Where else?", "box": [0, 0, 0.3, 1]},
    )
    generate = Pipeline.generate

    def answered(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        given = generate(self, *args, **kwargs)
        return dataclasses.replace(given, text="[0.00, 0.00, 1.00, 1.00]") if isinstance(given, Answer) else given

    monkeypatch.setattr(Pipeline, "generate", answered)
    folder = tmp_path / "out"
    result = answer_all(open_bundle(eval_bundle), "none", open_dataset(str(path)), SETTINGS, folder)
    first, second = (each.record for each in result.answered)
    assert first.answered_box == pytest.approx([20 / 130, 0, 110 / 130, 1], abs=0.01)  # whole pixels
    assert (first.score, second.score) == (1, 0)


def test_plans_that_pick_by_the_question_look_again(
    tiny_checkpoint: Path, known_answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtexport.build import build

    bundle = build(str(tiny_checkpoint), tmp_path / "b", method="cdpruner", keep=8)
    looks: list[Any] = []
    vision = Stages.vision

    def counted(self: Stages, image: Any) -> Any:
        looks.append(image)
        return vision(self, image)

    monkeypatch.setattr(Stages, "vision", counted)
    result = answer_all(bundle, "cdpruner-8", open_dataset(str(known_answers)), SETTINGS, tmp_path / "out")
    assert len(looks) == 1 + 9  # one to warm up
    pipeline = Pipeline(bundle, "cdpruner-8", threads=1)
    for each in result.answered:
        image = (
            known_answers.parent / json.loads(known_answers.read_text().splitlines()[each.question.number - 1])["image"]
        )
        wanted = pipeline.generate(image, each.question.question, max_new_tokens=NEW_TOKENS)
        assert each.record.answer == wanted.text
        assert each.record.warnings == []


def test_tokens_of_plans_that_prune_inside(tiny_checkpoint: Path, known_answers: Path, tmp_path: Path) -> None:
    from vtexport.build import build

    bundle = build(str(tiny_checkpoint), tmp_path / "b", method="fastv", keep=40)
    plan = bundle.plan("fastv-40")
    result = answer_all(bundle, "fastv-40", open_dataset(str(known_answers), 1), SETTINGS, tmp_path / "out")
    (answered,) = result.answered
    assert answered.record.visual_tokens == 64
    assert answered.record.tokens_per_layer == pytest.approx(sum(plan.tokens_by_layer()) / 3)
    kept = {step.layer: list(range(step.keep)) for step in plan.steps}
    assert tokens_per_layer(plan, 64, kept) == pytest.approx(sum(plan.tokens_by_layer()) / 3)


def test_adaptive_plans(eval_bundle: Path, known_answers: Path, tmp_path: Path) -> None:
    """Each image gets one of the budgets, and the records say which."""
    from vtexport.runtime.adapt import adapt

    bundle = open_bundle(shutil.copytree(eval_bundle, tmp_path / "b"))
    (adaptive,) = bundle.manifest.adaptive_plans
    adapt(bundle, known_answers.parent)
    report = run(bundle.folder, [adaptive.name], known_answers, tmp_path / "out")
    (plan,) = report.plans
    assert (plan.plan, plan.method, plan.keep) == (adaptive.name, "adaptive", None)
    assert 8 <= plan.visual_tokens <= 16
    lines = [json.loads(line) for line in record_files(tmp_path / "out")[0].read_text().splitlines()[1:]]
    assert {line["plan"] for line in lines} <= {"prunesid-8", "prunesid-16"}


def test_several_processes_give_the_same(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("joblib", reason="joblib is not installed")
    plans = ["none", "prunesid-8", "prunesid-16"]
    alone = run(eval_bundle, plans, known_answers, tmp_path / "alone")
    monkeypatch.setattr(evaluating, "_SECONDS_BETWEEN_LOOKS", 0.01)
    done: Counter[str] = Counter()
    together = evaluate(
        open_bundle(eval_bundle),
        plans,
        open_dataset(str(known_answers)),
        dataclasses.replace(SETTINGS, jobs=2),
        tmp_path / "together",
        lambda plan, count: done.update({plan: count}),
    )
    assert done == dict.fromkeys(plans, 9)
    assert [plan.plan for plan in together.plans] == plans
    assert [plan.tasks for plan in together.plans] == [plan.tasks for plan in alone.plans]
    assert together.settings["jobs"] == 2


def test_errors_of_other_processes_arrive(eval_bundle: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="joblib is not installed")
    path = write_lines({"image": "nowhere.png", "question": "x", "answer": "y"})
    with pytest.raises(InputError, match="answered none of the questions"):
        run(eval_bundle, ["none", "prunesid-8"], path, tmp_path / "out", dataclasses.replace(SETTINGS, jobs=2))


def test_without_joblib(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, blocked_import: Callable[[str], None]
) -> None:
    blocked_import("joblib")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vtexport\[jobs\]' or leave --jobs out"):
        run(eval_bundle, ["none"], known_answers, tmp_path / "out", dataclasses.replace(SETTINGS, jobs=2))


def break_plan(bundle: Path, folder: Path, plan: str) -> Path:
    """A copy of the bundle in which one plan's pruning graph is of the right size and no graph."""
    copy = Path(shutil.copytree(bundle, folder))
    graph = copy / open_bundle(copy).manifest.graphs[f"{plan}.prune"].file
    graph.write_bytes(bytes(graph.stat().st_size))
    return copy


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_plan_that_fails_does_not_lose_the_others(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, jobs: int
) -> None:
    if jobs > 1:
        pytest.importorskip("joblib", reason="joblib is not installed")
    broken = break_plan(eval_bundle, tmp_path / "b", "prunesid-8")
    settings = dataclasses.replace(SETTINGS, jobs=jobs)
    report = run(broken, ["none", "prunesid-8", "prunesid-16"], known_answers, tmp_path / "out", settings)
    assert [plan.plan for plan in report.plans] == ["none", "prunesid-16"]
    assert report.samples == 9
    (failed,) = report.failed
    assert (failed.plan, failed.exit_code) == ("prunesid-8", 4)
    assert "prunesid-8.prune.onnx" in failed.reason
    with pytest.raises(BundleError, match=r"prunesid-8\.prune\.onnx"):
        run(broken, ["prunesid-8"], known_answers, tmp_path / "out", settings)


def test_unexpected_errors_are_of_one_plan_too(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Pipeline.generate

    def failing(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        if self.name == "prunesid-8":
            raise RuntimeError("the operator failed")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "generate", failing)
    report = run(eval_bundle, ["none", "prunesid-8"], known_answers, tmp_path / "out")
    assert [plan.plan for plan in report.plans] == ["none"]
    assert report.failed[0].exit_code == 1
    assert report.failed[0].reason == (
        f"unexpected RuntimeError: the operator failed; run `vtexport eval {eval_bundle} --plan prunesid-8 --debug` "
        "and report this with its output"
    )
    with pytest.raises(VtexportError, match="unexpected RuntimeError") as caught:
        run(eval_bundle, ["prunesid-8"], known_answers, tmp_path / "out")
    assert isinstance(caught.value.__cause__, RuntimeError)  # for --debug


def test_plans_that_another_process_asks_are_asked_last_or_named(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = ["prunesid-8", "prunesid-16"]
    first = run(eval_bundle, plans[:1], known_answers, tmp_path / "out")
    held: list[Records] = []

    def hold() -> None:
        path = Path(first.plans[0].records)
        header = msgspec.json.decode(path.read_bytes().splitlines()[0], type=Header)
        held.append(Records(path.parent, header))

    hold()
    report = run(eval_bundle, plans, known_answers, tmp_path / "out")
    assert [plan.plan for plan in report.plans] == plans[1:]
    assert "is being written by another process" in report.failed[0].reason
    with pytest.raises(RecordsInUseError, match="is being written by another process"):
        run(eval_bundle, plans[:1], known_answers, tmp_path / "out")
    # It ends while the other plan is asked.
    asked_one = evaluating.answer_all

    def ending(bundle: Any, plan: str, *args: Any) -> Any:
        if plan == "prunesid-16":
            held.pop().__exit__(None, None, None)
        return asked_one(bundle, plan, *args)

    monkeypatch.setattr(evaluating, "answer_all", ending)
    report = run(eval_bundle, plans, known_answers, tmp_path / "out")
    assert [plan.plan for plan in report.plans] == plans
    assert report.failed == []


def test_a_killed_process_is_said(
    eval_bundle: Path, known_answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does it where memory runs out."""
    pytest.importorskip("joblib", reason="joblib is not installed")
    monkeypatch.setattr(evaluating, "_in_worker", lambda *asked: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(VtexportError, match="often because memory ran out; give fewer --jobs"):
        run(
            eval_bundle,
            ["none", "prunesid-8"],
            known_answers,
            tmp_path / "out",
            dataclasses.replace(SETTINGS, jobs=2),
        )
