"""The replay of one plan's proof by the pipeline's stages, one case after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vtexport.bundle.proof import Arrays, FoundProof, PlanProof
from vtexport.dtypes import DTYPES
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.prompt import PromptReader, Question
from vtexport.runtime.stages import Stages
from vtexport.runtime.vision import Preprocessed, VisionOutput
from vtexport.validate.compare import (
    guarded,
    kept_check,
    least_overlap,
    reach_of,
    skipped,
    tensor_check,
    tokens_check,
)
from vtexport.validate.report import Check


class Replay:
    """One plan's replay.

    Args:
        pipeline: that has the plan open.
        reader: of the bundle's prompts.
        found: the proof.
        plan: the plan's part of it.
        images: the proof's images as the vision graph takes them, with PyTorch's own pixels.
    """

    def __init__(
        self, pipeline: Pipeline, reader: PromptReader, found: FoundProof, plan: PlanProof, images: Sequence[Preprocessed]
    ):
        self._stages: Stages = pipeline.stages
        self._steps = [f"layer {step.layer}" for step in pipeline.plans[0].steps]
        self._precision = pipeline.bundle.manifest.precision
        self._reader, self._proof, self._plan, self._images = reader, found.proof, plan, images
        self._arrays: Arrays = found.arrays(plan.file)

    def run(self) -> list[Check]:
        """Every check of the plan."""
        checks: list[Check] = []
        for number, case in enumerate(self._proof.cases):
            text, image = self._proof.prompts[case.prompt], self._images[case.image]
            checks += guarded(number, "replay", lambda n=number, i=image, t=text: self._case(n, i, t))  # type: ignore[misc]
        return checks

    def _case(self, number: int, image: Preprocessed, text: str) -> list[Check]:
        stages, arrays, plan = self._stages, self._arrays, self._plan
        question = self._reader.question(text) if stages.takes_question else None
        seen = stages.vision(image)
        checks = [self._tensor(number, "features", seen.outputs["features"].numpy()[0])]
        for name in arrays.under(f"{number}.signal "):
            signal, part = name.rsplit(".", 1)
            if part == "rows":
                checks.append(self._tensor(number, f"signal {signal}", seen.outputs[signal].numpy()[0]))
        if number == 0:
            checks += guarded(number, "kept", lambda: self._op(seen, question))
        visual = stages.prune(seen, question)
        checks.append(self._kept(number, "visual", visual.keep_indices))
        if checks[-1].verdict != "pass":
            return checks + [skipped(name, number, "other tokens are kept") for name in ("rows", "logits", "tokens")]
        checks.append(self._tensor(number, "rows", visual.embeddings[0]))
        tokens = arrays[f"{number}.tokens"]
        continuation = stages.prefill(visual, self._reader.read(text), len(tokens))
        checks += [
            self._kept(number, place, kept.numpy()[0])
            for place, kept in zip(self._steps, continuation.sequence.kept, strict=True)
        ]
        if any(check.verdict != "pass" for check in checks if check.what.startswith("kept")):
            return checks + [skipped(name, number, "other tokens are kept") for name in ("logits", "tokens")]
        checks.append(self._tensor(number, "logits", continuation.logits))
        chosen, logits = [], continuation.logits
        for place, token in enumerate(tokens):
            chosen.append(int(logits.argmax()))
            if place + 1 < len(tokens):
                logits = stages.decode(continuation, int(token))  # PyTorch's, so that every step can be compared
        checks.append(self._tensor(number, "last logits", logits))
        reach = reach_of(arrays, plan, self._precision, number)
        checks.append(tokens_check(number, np.array(chosen), tokens, arrays[f"{number}.gaps"], reach))
        return checks

    def _op(self, seen: VisionOutput, question: Question | None) -> list[Check]:
        """The prune graph on inputs that the proof has, and not on those of this device's vision graph."""
        if self._plan.op_inputs is not None:
            return [skipped("kept", 0, f"its inputs are not in the proof: {self._plan.op_inputs}", "op")]
        given = {}
        for name in self._arrays.under("op."):
            if name != "kept":
                kind = DTYPES[seen.outputs[name].dtype].numpy
                given[name] = self._stages.upload(self._arrays[f"op.{name}"][None].astype(kind))
        visual = self._stages.prune(dataclasses.replace(seen, outputs=given), question)
        margins = self._plan.op_margins
        least = least_overlap(self._plan, "visual", self._precision, margins)
        return [kept_check("op", "visual", 0, visual.keep_indices, self._arrays["op.kept"], least, margins)]

    def _tensor(self, number: int, name: str, found: np.ndarray) -> Check:
        return tensor_check(self._arrays, self._plan, self._precision, number, name, found)

    def _kept(self, number: int, place: str, found: np.ndarray) -> Check:
        margins = self._plan.answers[number].margins
        begins = "" if place == "visual" else f"{place}: "
        own = {name.removeprefix(begins): each for name, each in margins.items() if name.startswith(begins)}
        own = {name: each for name, each in own.items() if ": " not in name}
        least = least_overlap(self._plan, place, self._precision, own)
        return kept_check("pipeline", place, number, found, self._arrays[f"{number}.kept.{place}"], least, own)
