"""One plan's proof as it is stored: samples of PyTorch's answers, and how far rounding alone moves them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from vtexport.bundle.manifest import Plan
from vtexport.bundle.proof import CaseAnswer, Noise, PlanProof
from vtexport.bundle.proof_samples import (
    Deviation,
    logits_deviation,
    overlap,
    rows_deviation,
    sample_logits,
    sample_rows,
    stride_of,
)
from vtexport.errors import quoted
from vtexport.proof.answer import Answered, Answerer, why_no_margin
from vtexport.proof.estimate import RUNS
from vtexport.proof.reference import Prompt, Reference
from vtexport.proof.rounding import rounded

PLAN_BYTES = 2_000_000  # of a plan's file
_SEED = 20260612

Question = tuple[np.ndarray, Prompt]  # pixels [1, 3, H, W], and what is asked


class Noises:
    """The largest deviations under rounding, and the least overlaps, over runs and cases."""

    def __init__(self) -> None:
        self.tensors: dict[str, Noise] = {}
        self.overlap: dict[str, float] = {}

    def add(
        self,
        clean: Answered,
        stored: dict[str, dict[str, np.ndarray]],
        other: Answered,
        stride: dict[str, int],
    ) -> None:
        """Compares a run under rounding with the run that is recorded.

        Visual rows are compared where the same tokens were kept, logits where that holds at every step.
        """
        for place, kept in clean.kept.items():
            share = overlap(other.kept[place], kept)
            self.overlap[place] = min(share, self.overlap.get(place, 1.0))
        self._compare(clean, stored, other, stride, list(clean.tensors))

    def add_behind_tower(
        self,
        clean: Answered,
        stored: dict[str, dict[str, np.ndarray]],
        other: Answered,
        stride: dict[str, int],
    ) -> None:
        """The same of a run whose rounding began behind the vision tower, to which the features' own noise is added."""
        apart = Noises()
        apart._compare(clean, stored, other, stride, ["rows"])
        features = self.tensors["features"]
        for name, found in apart.tensors.items():
            self._more(name, Deviation(found.rms + features.rms, found.largest + features.largest))

    def _compare(
        self,
        clean: Answered,
        stored: dict[str, dict[str, np.ndarray]],
        other: Answered,
        stride: dict[str, int],
        names: Sequence[str],
    ) -> None:
        same = {place: np.array_equal(other.kept[place], kept) for place, kept in clean.kept.items()}
        for name in names:
            if name != "rows" or same["visual"]:
                self._more(name, rows_deviation(other.tensors[name], stored[name], stride[name]))
        for name in other.logits if all(same.values()) else ():
            self._more(name, logits_deviation(other.logits[name], stored[name]))

    def _more(self, name: str, found: Deviation) -> None:
        known = self.tensors.get(name, Noise(rms=0.0, largest=0.0))
        self.tensors[name] = Noise(rms=max(known.rms, found.rms), largest=max(known.largest, found.largest))


def record_plan(
    reference: Reference,
    plan: Plan,
    questions: Sequence[Question],
    *,
    precision: str,
    new_tokens: int,
    file: str,
    digest: str,
    made: tuple[str, str, dict[str, str]],
) -> tuple[bytes, PlanProof]:
    """The content of a plan's file, and its part of proof.json.

    Args:
        reference: the PyTorch side.
        plan: of the bundle.
        questions: one a case.
        precision: of the bundle, whose rounding the noise is of.
        new_tokens: of every answer.
        file, digest, made: what to write down; `made` are time, command and versions.

    Raises:
        UsageError: eager pruning does not take this model or method.
        InputError: the method plans otherwise than it did in the build, or a value is not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    answers: list[Answered] = []
    noises, strides = Noises(), dict[str, int]()
    with Answerer(reference, plan) as answerer:
        for number, (pixels, prompt) in enumerate(questions):
            clean = answerer.answer(pixels, prompt, new_tokens)
            answers.append(clean)
            stored = {}
            for name, values in clean.tensors.items():
                strides.setdefault(name, stride_of(len(values), values[0].size, len(questions)))
                stored[name] = sample_rows(values, strides[name])
            stored |= {name: sample_logits(values) for name, values in clean.logits.items()}
            for run in range(1, RUNS):
                decoded = new_tokens if run == 1 else 0
                with rounded(reference.model, precision, _SEED + run):
                    noises.add(clean, stored, answerer.answer(pixels, prompt, decoded, clean.tokens), strides)
            if not {*clean.tensors, *clean.logits} <= set(noises.tensors):  # rounding changed what was kept
                tower = reference.model.model.vision_tower
                with rounded(reference.model, precision, _SEED, without=tower):
                    other = answerer.answer(pixels, prompt, new_tokens, clean.tokens)
                noises.add_behind_tower(clean, stored, other, strides)
            for name, parts in stored.items():
                arrays |= {f"{number}.{name}.{part}": each for part, each in parts.items()}
            arrays |= {f"{number}.kept.{place}": each.astype(np.int32) for place, each in clean.kept.items()}
            arrays[f"{number}.tokens"], arrays[f"{number}.gaps"] = clean.tokens.astype(np.int32), clean.gaps
        inputs, op_margins, why_not = _op_inputs(answerer, answers[0], questions[0][1])
    data = packed(arrays | inputs)
    if len(data) > PLAN_BYTES and inputs:
        data, larger, op_margins = packed(arrays), len(data), {}
        why_not = f"with them the plan's file would have {larger:,} bytes, more than {PLAN_BYTES:,}"
    reason = why_no_margin(plan, answers)
    created_at, command, versions = made
    return data, PlanProof(
        file=file,
        plan_sha256=digest,
        created_at=created_at,
        command=command,
        versions=versions,
        answers=[
            CaseAnswer(visual_tokens=len(each.kept["visual"]), margins=each.margins, no_margin=reason)
            for each in answers
        ],
        strides=strides,
        noise=noises.tensors,
        overlap=noises.overlap,
        op_margins=op_margins,
        op_inputs=why_not,
    )


def _op_inputs(
    answerer: Answerer, answered: Answered, prompt: Prompt
) -> tuple[dict[str, np.ndarray], dict[str, float], str | None]:
    """Inputs of the prune graph for the first case, in float16 (scores in float32), with what the reference keeps of
    exactly these; or none, and why.
    """
    seen = {name.removeprefix("signal "): each for name, each in answered.tensors.items() if name != "rows"}
    with np.errstate(over="ignore"):
        stored = {name: each if each.ndim == 1 else each.astype(np.float16) for name, each in seen.items()}
    if not all(np.isfinite(each).all() for each in stored.values()):
        return {}, {}, "they leave the range of float16"
    try:
        kept, margins = answerer.select(stored, prompt)
    except Exception as error:  # a reference that cannot place what float16 made of the rows
        return {}, {}, f"the reference does not take them in float16 ({quoted(error)})"
    kept = kept[: len(answered.kept["visual"])]
    return {f"op.{name}": each for name, each in stored.items()} | {"op.kept": kept.astype(np.int32)}, margins, None


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as a compressed .npz."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
