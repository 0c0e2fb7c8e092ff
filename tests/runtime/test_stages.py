"""Stages one by one, streams, the clock, and the end of a pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtexport.errors import InputError, UsageError
from vtexport.runtime.pipeline import Pipeline

QUESTION = "What is on the table?"
PLAN = "prunesid-16"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(tiny_bundle, PLAN) as opened:
        yield opened


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (150, 201, 3), dtype=np.uint8)


def test_the_stages_one_by_one_give_the_answer(pipeline: Pipeline, image: np.ndarray) -> None:
    stages, count = pipeline.stages, 6
    visual = stages.prune(stages.vision(stages.preprocess(image)))
    read = pipeline._prompts.read(QUESTION)
    continuation = stages.prefill(visual, read, count)
    tokens = [int(continuation.logits.argmax())]
    while len(tokens) < count:
        tokens.append(int(stages.decode(continuation, tokens[-1]).argmax()))
    stages.sync()
    answer = pipeline.generate(image, QUESTION, max_new_tokens=count, logits_processors=False)
    assert tokens == answer.token_ids
    assert continuation.prompt_tokens == answer.prompt_tokens
    assert visual.keep_indices.tolist() == answer.keep_indices
    assert visual.timings_ms == {}


def test_the_clock_leaves_out_who_reads(pipeline: Pipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who takes a thousand seconds by the clock for each piece, and before the first."""
    passed, real = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + passed[0])
    stream = pipeline.stream(image, QUESTION, max_new_tokens=8)
    passed[0] += 1000
    pieces = 0
    for _ in stream:
        pieces += 1
        passed[0] += 1000
    assert pieces > 2
    assert stream.answer is not None
    assert stream.answer.timings_ms["total"] < 1e6

    def read(piece: str) -> None:
        passed[0] += 1000

    times = pipeline.generate(image, QUESTION, max_new_tokens=8, stream=read).timings_ms
    assert times["total"] < 1e6
    assert times["total"] == pytest.approx(times["first_token"] + times["decode"])


@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_errors_come_at_the_call(pipeline: Pipeline, image: np.ndarray, tmp_path: Path, verb: str) -> None:
    ask = getattr(pipeline, verb)
    with pytest.raises(UsageError, match="the prompt is empty"):
        ask(image, " ")
    with pytest.raises(UsageError, match="more than the model's"):
        ask(image, QUESTION, max_new_tokens=100_000)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        ask(tmp_path / "a.png", QUESTION)


def test_stream_as_an_argument_is_a_function(pipeline: Pipeline, image: np.ndarray) -> None:
    wrong: Any = True
    with pytest.raises(UsageError, match=r"stream is True; give a function, or call Pipeline\.stream"):
        pipeline.generate(image, QUESTION, stream=wrong)


@pytest.mark.parametrize("verb", ["generate", "stream", "encode"])
def test_a_closed_pipeline_says_so(tiny_bundle: Path, image: np.ndarray, verb: str) -> None:
    with Pipeline.open(tiny_bundle, PLAN) as opened:
        visual = opened.encode(image)
    with pytest.raises(UsageError, match="is closed; open it again"):
        getattr(opened, verb)(image, QUESTION)
    again = Pipeline.open(tiny_bundle, PLAN)
    assert again.generate(visual, QUESTION, max_new_tokens=2).keep_indices == visual.keep_indices.tolist()


def test_the_prompt_is_rendered_and_tokenised_once(
    pipeline: Pipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a plan that picks by the question, its own text once more; `generate` asks nothing twice."""
    reader, calls = pipeline._prompts, []
    for name in ("render", "read", "question"):
        called = getattr(reader, name)

        def counted(*args: Any, name: str = name, called: Any = called, **options: Any) -> Any:
            calls.append(name)
            return called(*args, **options)

        monkeypatch.setattr(reader, name, counted)
    pipeline.generate(image, QUESTION, max_new_tokens=2)
    assert calls == ["read", "render"]
    monkeypatch.setattr(type(pipeline.stages), "takes_question", True)
    calls.clear()
    pipeline.generate(image, QUESTION, max_new_tokens=2)
    assert calls == ["read", "render", "question"]
