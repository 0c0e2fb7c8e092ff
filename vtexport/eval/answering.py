"""Asking one plan of a bundle every question of a dataset, with a record of each answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from vtexport.backends.onnxruntime.backend import import_onnxruntime
from vtexport.backends.registry import open_backend
from vtexport.bundle.abilities import Abilities, ChosenGraphs, choose_graphs, notes_on
from vtexport.bundle.manifest import Plan
from vtexport.bundle.reader import Bundle
from vtexport.errors import InputError, UsageError
from vtexport.eval.dataset import BadLine, Dataset, ImageGroup, Question
from vtexport.eval.metrics import IOU_THRESHOLD, Box, exact_match, iou, parse_box, vqa_accuracy
from vtexport.eval.records import SCHEMA_VERSION, Header, Record, Records, plan_digest
from vtexport.measure.machine import describe_machine
from vtexport.runtime.answers import Answer, VisualTokens
from vtexport.runtime.images import load_image
from vtexport.runtime.pipeline import Pipeline
from vtexport.version import __version__

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation's answers, which are greedy."""

    max_new_tokens: int = MAX_NEW_TOKENS
    device: str = "cpu"
    threads: int | None = None
    jobs: int = 1  # plans that are asked at the same time; it slows each of them
    logits_processors: bool = True  # the checkpoint's

    def described(self) -> dict[str, Any]:
        """The settings with the versions of what answers."""
        runtime = import_onnxruntime()
        return asdict(self) | {"vtexport": __version__, "onnxruntime": runtime.__version__}


@dataclass(frozen=True)
class Answered:
    """A question with its record."""

    question: Question
    image: str  # digest
    record: Record


@dataclass(frozen=True)
class PlanRun:
    """Answers of one plan, in the dataset's order."""

    plan: str
    answered: tuple[Answered, ...]
    bad: tuple[BadLine, ...]  # images that cannot be read, questions that cannot be asked
    records: Path
    machine: Mapping[str, Any]  # that the first of them was made on


def answer_all(
    bundle: Bundle,
    plan: str,
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> PlanRun:
    """Asks one plan what has no record yet, and gives all of its records.

    Args:
        bundle, plan: as for `Pipeline`.
        dataset: what to ask.
        settings: how.
        folder: where the records are kept (`Records`).
        progress: called with each count of questions done.

    Raises:
        UsageError: no such plan, or a setting is out of range.
        InputError: nothing could be answered, or the records cannot be written.
        BundleError, MissingDependencyError: as `Pipeline`.
    """
    if settings.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {settings.max_new_tokens}; give a whole number from 1")
    graphs = graphs_here(bundle, plan, settings)
    described = settings.described()
    digest = plan_digest(bundle, plan, graphs, described)
    header = Header(
        schema_version=SCHEMA_VERSION,
        digest=digest,
        plan=plan,
        settings=described,
        graphs=graphs,
        machine=describe_machine(),
    )
    with Records(folder, header) as records:
        asker = _PlanAsker(bundle, plan, settings, records)
        for group in dataset.groups():
            if isinstance(group, BadLine):
                asker.bad.append(group)
                progress(1)
            else:
                asker.ask(group)
                progress(len(group.questions))
        if not asker.answered:
            reason = f"; line {asker.bad[0].number}: {asker.bad[0].reason}" if asker.bad else ""
            raise InputError(f"{plan} answered none of the questions of {dataset.name}{reason}")
        return PlanRun(plan, tuple(asker.answered), tuple(asker.bad), records.path, records.machine)


def graphs_here(bundle: Bundle, plan: str, settings: Settings) -> list[str]:
    """The graphs of a plan, or of those that an adaptive plan chooses from, that answer with these settings here.

    Raises:
        UsageError, MissingDependencyError: as `Pipeline`.
    """
    chosen, _ = _chosen_here(bundle, plan, settings)
    return sorted({name for graphs in chosen for name in graphs.names})


def notes_here(bundle: Bundle, plans: Sequence[str], settings: Settings) -> list[str]:
    """Sentences on graphs of these plans that are passed over here, each once; errors as of `graphs_here`."""
    notes: dict[str, None] = {}
    for plan in plans:
        notes |= dict.fromkeys(notes_on(*_chosen_here(bundle, plan, settings), bundle.manifest))
    return list(notes)


def _chosen_here(bundle: Bundle, plan: str, settings: Settings) -> tuple[list[ChosenGraphs], Abilities]:
    with contextlib.closing(open_backend(device=settings.device, threads=settings.threads)) as backend:
        abilities = backend.provides.abilities
    return [choose_graphs(bundle.manifest, each, abilities) for each in bundle.plans_of(plan)], abilities


class _PlanAsker:
    """Asks one plan: its pipeline is opened when a question has no record."""

    def __init__(self, bundle: Bundle, plan: str, settings: Settings, records: Records):
        self._bundle, self._plan, self._settings, self._records = bundle, plan, settings, records
        self._plans = {each.name: each for each in bundle.manifest.plans}
        self._pipeline: Pipeline | None = None
        self.answered: list[Answered] = []
        self.bad: list[BadLine] = []

    def ask(self, group: ImageGroup) -> None:
        """All questions about one image; it is looked at once, unless the plan picks tokens by the question."""
        image: Image.Image | None = None
        visual: VisualTokens | None = None
        for key, question in zip(group.digests(), group.questions, strict=True):
            record = self._records.known.get(key)
            if record is not None:
                record = msgspec.structs.replace(record, score=_score(question, record.answer, record.answered_box))
                self.answered.append(Answered(question, group.digest, record))
                continue
            try:
                image = image or load_image(group.image)
            except InputError as error:
                self.bad.append(BadLine(question.number, str(error)))
                continue
            pipeline = self._opened(image, question.question)
            try:
                if visual is None or pipeline.takes_question:
                    visual = pipeline.encode(image, question.question)
                answer = pipeline.generate(
                    visual,
                    question.question,
                    max_new_tokens=self._settings.max_new_tokens,
                    logits_processors=self._settings.logits_processors,
                )
            except (InputError, UsageError) as error:  # a prompt that is too long, numbers out of range
                self.bad.append(BadLine(question.number, str(error)))
                continue
            record = _record(key, question, visual, answer, self._plans[answer.plan])
            self._records.add(record)
            self.answered.append(Answered(question, group.digest, record))

    def _opened(self, image: Image.Image, question: str) -> Pipeline:
        """The pipeline; the answer that warms it up is not recorded, because it takes longer than others."""
        if self._pipeline is None:
            settings = self._settings
            pipeline = Pipeline(self._bundle, self._plan, device=settings.device, threads=settings.threads)
            with contextlib.suppress(InputError, UsageError):  # said where the question is asked
                pipeline.generate(image, question, max_new_tokens=min(2, settings.max_new_tokens))
            self._pipeline = pipeline
        return self._pipeline


def _record(key: str, question: Question, visual: VisualTokens, answer: Answer, plan: Plan) -> Record:
    box = None if question.box is None else _in_image(parse_box(answer.text), visual)
    return Record(
        sample=key,
        number=question.number,
        id=question.id,
        task=question.task,
        question=question.question,
        expected=question.expected,
        answer=answer.text,
        answered_box=box,
        score=_score(question, answer.text, box),
        visual_tokens=answer.visual_tokens,
        tokens_per_layer=tokens_per_layer(plan, answer.visual_tokens, answer.kept_by_layer),
        new_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason,
        plan=answer.plan,
        warnings=answer.warnings,
        timings_ms=_timings(visual, answer),
    )


def _score(question: Question, answer: str, box: Sequence[float] | None) -> float:
    if question.box is not None:
        return float(box is not None and iou(_box(box), question.box) >= IOU_THRESHOLD)
    if question.answers:
        return vqa_accuracy(answer, question.answers)
    return exact_match(answer, question.answer)


def _box(numbers: Sequence[float]) -> Box:
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


def _in_image(box: Box | None, visual: VisualTokens) -> list[float] | None:
    """From shares of the square that the model saw to shares of the whole image."""
    if box is None:
        return None
    (width, height), crop = visual.image_size, visual.crop
    x = [(crop.left + share * crop.width) / width for share in box[0::2]]
    y = [(crop.top + share * crop.height) / height for share in box[1::2]]
    return [x[0], y[0], x[1], y[1]]


def tokens_per_layer(plan: Plan, entering: int, kept_by_layer: Mapping[int, Sequence[int]]) -> float:
    """Visual tokens of one answer on average over the language model's layers."""
    counts = [entering, *(len(kept_by_layer[step.layer]) for step in plan.steps)]
    layers = [segment.layers for segment in plan.segments]
    return sum(count * share for count, share in zip(counts, layers, strict=True)) / sum(layers)


def _timings(visual: VisualTokens, answer: Answer) -> dict[str, float]:
    """As of an answer whose image nobody looked at before: several questions may have shared one look."""
    image = sum(visual.timings_ms.values())
    times = dict(answer.timings_ms)
    return times | {"first_token": times["first_token"] + image, "total": times["total"] + image}
