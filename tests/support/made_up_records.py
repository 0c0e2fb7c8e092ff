"""Records of answers that nobody gave, and reports on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import Plan, PlanGraphs, Segment
from vtexport.eval.answering import Answered, PlanRun
from vtexport.eval.dataset import BadLine, Question
from vtexport.eval.records import Record
from vtexport.eval.report import Report, make_report


@dataclasses.dataclass
class FakeManifest:
    plans: list[Plan]
    source: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class FakeBundle:
    """A stand-in for a bundle, as far as a report looks at it."""

    folder: Path
    manifest: FakeManifest

    def plan_or_adaptive(self, name: str) -> Plan:
        return next(plan for plan in self.manifest.plans if plan.name == name)


def plan(name: str) -> Plan:
    method, _, keep = name.partition("-")
    return Plan(
        name=name,
        method=method,
        parameters={},
        paper=None,
        keep=int(keep or 576),
        visual_tokens=int(keep or 576),
        segments=[Segment(first_layer=0, layers=2)],
        positions="contiguous",
        graphs=PlanGraphs(vision=["vision"], prune=["prune"], decoder=[["decoder_0"]]),
        command="",
        created_at="",
    )


STAGES = ("preprocess", "vision", "prune", "prefill", "first_token", "total")


def answered(
    number: int, score: float, *, image: str, task: str = "t", answer: str = "", reference: str = "x"
) -> Answered:
    metric = "IoU >= 0.5" if task == "grounding" else "exact match"
    question = Question(number, task, metric, "q", answer=reference)
    record = Record(
        sample=str(number), number=number, id=None, task=task, question="q", expected=reference, answer=answer,
        score=score, visual_tokens=64, tokens_per_layer=32.0, new_tokens=3, finish_reason="eos", plan="p",
        timings_ms=dict.fromkeys(STAGES, float(number)),
    )  # fmt: skip
    return Answered(question, image, record)


def report(runs: dict[str, Sequence[Answered]], bad: dict[str, list[BadLine]] | None = None) -> Report:
    bundle: Any = FakeBundle(Path("b"), FakeManifest([plan(name) for name in runs]))
    made = [PlanRun(name, tuple(each), tuple((bad or {}).get(name, ())), Path("r"), {}) for name, each in runs.items()]
    described = {"settings": {}, "machine": {}, "command": "", "created_at": ""}
    return make_report(bundle, "data", [], made, [], described)
