"""One answer by its stages: the same tokens as the pipeline's, of fixed length, with clocks that fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_measurement import SETTINGS, contenders

from vtexport.bundle.reader import open_bundle
from vtexport.errors import InputError, UsageError
from vtexport.measure.answer import Contender, MeasuredPlan, Settings, Stopped
from vtexport.measure.record import STAGES
from vtexport.runtime.pipeline import Pipeline


@pytest.mark.parametrize("name", ["none", "prunesid-8"])
def test_it_answers_as_the_pipeline_does(eval_bundle: Path, photo: Path, name: str) -> None:
    """Until the pipeline ends at an end token; the measured answer goes on."""
    plan = MeasuredPlan(Contender(open_bundle(eval_bundle), name), Settings("What?", new_tokens=12, threads=1))
    timed = plan.answer(str(photo))
    plan.close()
    with Pipeline.open(eval_bundle, name, threads=1) as pipeline:
        answer = pipeline.generate(str(photo), "What?", max_new_tokens=12)
    assert timed.token_ids[: len(answer.token_ids)] == answer.token_ids
    assert (timed.prompt_tokens, timed.visual_tokens) == (answer.prompt_tokens, answer.visual_tokens)
    assert len(timed.token_ids) == 12


def test_stages_lie_within_the_whole(tiny_bundle: Path, noisy_image: np.ndarray) -> None:
    plan = MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS)
    timed = plan.answer(noisy_image)
    assert tuple(timed.stages_ms) == STAGES
    assert all(timed.stages_ms[stage] > 0 for stage in STAGES)
    assert sum(timed.stages_ms.values()) <= timed.total_ms
    assert sum(timed.decode_ms) == pytest.approx(timed.stages_ms["decode"])
    assert len(timed.decode_ms) == 2
    assert timed.first_token_ms < timed.total_ms


def test_an_end_token_does_not_end_it(tiny_bundle: Path, noisy_image: np.ndarray) -> None:
    bundle = open_bundle(tiny_bundle)
    plan = MeasuredPlan(Contender(bundle, "prunesid-16"), SETTINGS)
    first = plan.answer(noisy_image).token_ids[0]
    bundle.manifest.text.eos_token_ids = [first]
    assert len(plan.answer(noisy_image).token_ids) == 3
    with Pipeline(bundle, "prunesid-16", threads=1) as pipeline:
        assert pipeline.generate(noisy_image, "What?", max_new_tokens=3).token_ids == [first]


@pytest.mark.parametrize("after", range(10))
def test_it_can_be_stopped_between_any_two_steps(tiny_bundle: Path, noisy_image: np.ndarray, after: int) -> None:
    steps = iter(range(after))
    plan = MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS, lambda: next(steps, None) is None)
    with pytest.raises(Stopped):
        plan.answer(noisy_image)


def test_a_prompt_that_cannot_be_is_refused_before_anything_is_loaded(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], Settings(" "))
    plan = MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS)
    with pytest.raises(InputError, match="nowhere"):
        plan.answer("nowhere.png")


def test_stages_can_be_repeated_alone(tiny_bundle: Path, noisy_image: np.ndarray) -> None:
    steps = MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS).steps(noisy_image)
    assert list(steps.calls) == ["preprocess", "vision", "prune", "prefill"]
    for call in steps.calls.values():
        call()
    one, other = steps.prefill().logits, steps.prefill().logits
    assert (one == other).all()
