"""What is asked again: not computed again, and the answer is that of a pipeline that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from separate_memory import SeparateBackend

from vtexport.build import build
from vtexport.errors import UsageError
from vtexport.runtime import pipeline as pipeline_module
from vtexport.runtime.pipeline import Answer, Pipeline
from vtexport.runtime.reuse import ImageRows, PromptRows, Reuse

FIRST, SECOND = "What is on the table?", "What colour is the cup?"
NEW = 8


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(8).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans none, prunesid-16, cdpruner-16 (by the question) and nuwa-16 (steps)."""
    folder = tmp_path_factory.mktemp("reuse") / "tiny"
    for method in ("none", "prunesid", "cdpruner", "nuwa"):
        build(str(tiny_checkpoint), folder, method=method, keep=None if method == "none" else 16)
    return folder


@pytest.fixture
def opened(bundle: Path) -> Iterator[Callable[..., Pipeline]]:
    """Opens plans of the bundle; all are closed at the end."""
    found: list[Pipeline] = []

    def one(plan: str = "prunesid-16", reuse: Reuse | None = None) -> Pipeline:
        found.append(Pipeline.open(bundle, plan, threads=1, reuse=reuse))
        return found[-1]

    yield one
    for each in found:
        each.close()


def vision_runs(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    runs: list[None] = []
    run = pipeline.stages.vision

    def counted(image: Any) -> Any:
        runs.append(None)
        return run(image)

    monkeypatch.setattr(pipeline.stages, "vision", counted)
    return runs


def same(answer: Answer, fresh: Answer) -> None:
    assert (answer.token_ids, answer.keep_indices) == (fresh.token_ids, fresh.keep_indices)
    assert (answer.prompt_tokens, answer.finish_reason) == (fresh.prompt_tokens, fresh.finish_reason)
    assert fresh.reused_tokens == 0


def turn(image: Any, *texts: str) -> list[dict[str, Any]]:
    """A conversation about one image: question, answer, question, ..."""
    first = [{"type": "image", "image": image}, {"type": "text", "text": texts[0]}]
    roles = ("user", "assistant")
    later = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts[1:], 1)]
    return [{"role": "user", "content": first}, *later]


def test_a_frame_is_encoded_once(
    opened: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By content: an array and a file of the same pixels are one frame."""
    first, second = images(2)
    reuse = Reuse()
    pipeline, fresh = opened(reuse=reuse), opened()
    runs = vision_runs(pipeline, monkeypatch)
    Image.fromarray(first).save(tmp_path / "a.png")
    for image, count in ((first, 1), (tmp_path / "a.png", 1), (second, 2), (first.copy(), 2)):
        answer = pipeline.generate(image, FIRST, max_new_tokens=NEW)
        assert len(runs) == count
        same(answer, fresh.generate(image, FIRST, max_new_tokens=NEW))
    assert answer.images[0].reused
    assert answer.timings_ms["vision"] > 0  # of when it ran
    assert reuse.frames_found == 2


def test_frames_are_bounded(opened: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = images(3)
    pipeline = opened(reuse=Reuse(frames=2, prompts=0))
    runs = vision_runs(pipeline, monkeypatch)
    for image in (first, second, first, third, first, second):  # the third drives the second out
        answer = pipeline.generate(image, FIRST, max_new_tokens=1)
        assert answer.reused_tokens == 0
    assert len(runs) == 4
    assert len(pipeline._reuse._frames) == 2  # type: ignore[union-attr]


def test_a_frame_turned_another_way_is_another(opened: Callable[..., Pipeline]) -> None:
    image = images(1)[0]
    pipeline, fresh = opened(reuse=Reuse()), opened()
    for each in (image, np.ascontiguousarray(image.reshape(80, 60, 3)), image[::-1]):
        same(pipeline.generate(each, FIRST, max_new_tokens=NEW), fresh.generate(each, FIRST, max_new_tokens=NEW))


def test_a_further_question_runs_its_own_text_alone(opened: Callable[..., Pipeline]) -> None:
    image = images(1)[0]
    pipeline, fresh = opened(reuse=Reuse()), opened()
    assert pipeline.generate(image, FIRST, max_new_tokens=NEW).reused_tokens == 0
    answer = pipeline.generate(image, SECOND, max_new_tokens=NEW)
    same(answer, fresh.generate(image, SECOND, max_new_tokens=NEW))
    prompts = [pipeline._prompts.read(each) for each in (FIRST, SECOND)]
    common = np.argmin(prompts[0].after[:8] == prompts[1].after[:8])
    assert answer.reused_tokens == len(prompts[1].before) + 16 + common


def test_the_first_logits_are_close_to_a_fresh_run(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened(reuse=(reuse := Reuse()))
    visual = pipeline.encode(images(1)[0])
    pipeline.generate(visual, FIRST, max_new_tokens=NEW)
    read = pipeline._prompts.read(SECOND)
    behind = pipeline.stages.prefill(visual, read, NEW, reuse)
    fresh = pipeline.stages.prefill(visual, read, NEW)
    assert behind.reused_tokens > 16
    np.testing.assert_allclose(behind.logits, fresh.logits, rtol=1e-4, atol=1e-4)


def test_a_further_turn_goes_on_behind_the_answer(opened: Callable[..., Pipeline]) -> None:
    """Also where it needs more room than the first had, and where the answer came out as other tokens."""
    image = images(1)[0]
    pipeline, fresh = opened(reuse=Reuse()), opened()
    first = pipeline.generate(image, FIRST, max_new_tokens=2)
    for said, least in ((first.text, first.prompt_tokens), ("something else", first.prompt_tokens)):
        messages = turn(image, FIRST, said, SECOND)
        answer = pipeline.generate(None, messages, max_new_tokens=40)
        same(answer, fresh.generate(None, messages, max_new_tokens=40))
        assert answer.reused_tokens >= least - 4  # template words behind the prompt may join the answer's


def test_the_same_question_again(opened: Callable[..., Pipeline]) -> None:
    image = images(1)[0]
    pipeline = opened(reuse=Reuse())
    first = pipeline.generate(image, FIRST, max_new_tokens=NEW)
    again = pipeline.generate(image, FIRST, max_new_tokens=NEW)
    assert again.token_ids == first.token_ids
    assert again.reused_tokens == again.prompt_tokens - 1  # the last row gives the logits


def test_of_several_images_the_common_ones(opened: Callable[..., Pipeline]) -> None:
    first, second, third = images(3)
    pipeline, fresh = opened(reuse=Reuse()), opened()
    pipeline.generate([first, second], FIRST, max_new_tokens=NEW)
    answer = pipeline.generate([first, third], FIRST, max_new_tokens=NEW)
    same(answer, fresh.generate([first, third], FIRST, max_new_tokens=NEW))
    assert 16 < answer.reused_tokens < 32
    assert [image.reused for image in answer.images] == [True, False]


def test_several_prompts_are_kept(opened: Callable[..., Pipeline]) -> None:
    first, second, third = images(3)
    pipeline = opened(reuse=Reuse(prompts=2))
    for image, found in (
        (first, False),
        (second, False),
        (first, True),
        (second, True),
        (third, False),
        (second, True),
    ):
        answer = pipeline.generate(image, FIRST, max_new_tokens=NEW)
        assert (answer.reused_tokens > 16) == found
    assert len(pipeline._reuse._prompts) == 2  # type: ignore[union-attr]


def test_visual_tokens_of_the_caller(opened: Callable[..., Pipeline]) -> None:
    pipeline, fresh = opened(reuse=Reuse()), opened()
    visual = pipeline.encode(images(1)[0])
    pipeline.generate(visual, FIRST, max_new_tokens=NEW)
    answer = pipeline.generate(visual, SECOND, max_new_tokens=NEW)
    assert answer.reused_tokens > 16
    same(answer, fresh.generate(visual, SECOND, max_new_tokens=NEW))


def test_a_reader_that_leaves(opened: Callable[..., Pipeline]) -> None:
    image = images(1)[0]
    pipeline, fresh = opened(reuse=Reuse()), opened()
    stream = pipeline.stream(image, FIRST, max_new_tokens=100)
    next(stream.by_token())
    stream.close()
    assert stream.answer is None
    answer = pipeline.generate(image, SECOND, max_new_tokens=NEW)
    assert answer.reused_tokens > 16
    same(answer, fresh.generate(image, SECOND, max_new_tokens=NEW))


def test_answers_side_by_side(opened: Callable[..., Pipeline]) -> None:
    """Two streams of one pipeline never share keys and values."""
    image = images(1)[0]
    pipeline, fresh = opened(reuse=Reuse()), opened()
    pipeline.generate(image, FIRST, max_new_tokens=NEW)
    streams = [pipeline.stream(image, each, max_new_tokens=NEW) for each in (FIRST, SECOND)]
    for _ in zip(*(each.by_token() for each in streams), strict=False):
        pass
    for stream, question in zip(streams, (FIRST, SECOND), strict=True):
        list(stream)
        assert stream.answer is not None
        assert stream.answer.token_ids == fresh.generate(image, question, max_new_tokens=NEW).token_ids


def test_nothing_is_kept_behind_an_error(opened: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(1)[0]
    pipeline = opened(reuse=Reuse())

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.stages, "decode", fails)
        with pytest.raises(RuntimeError, match="the device is gone"):
            pipeline.generate(image, FIRST, max_new_tokens=NEW)
    assert pipeline.generate(image, SECOND, max_new_tokens=NEW).reused_tokens == 0


def test_a_plan_that_looks_at_the_question(opened: Callable[..., Pipeline]) -> None:
    """Another question has other visual tokens; the same one is a frame and a prompt that are there."""
    image = images(1)[0]
    pipeline, fresh = opened("cdpruner-16", Reuse()), opened("cdpruner-16")
    for question, reused in ((FIRST, False), (SECOND, False), (SECOND, True)):
        answer = pipeline.generate(image, question, max_new_tokens=NEW)
        same(answer, fresh.generate(image, question, max_new_tokens=NEW))
        assert (answer.images[0].reused, answer.reused_tokens > 16) == (reused, reused)
        assert answer.warnings == []


def test_a_plan_that_prunes_inside_the_language_model(opened: Callable[..., Pipeline]) -> None:
    """It chooses by the end of the prompt: frames are kept, and prompts without an image."""
    image = images(1)[0]
    pipeline, fresh = opened("nuwa-16", Reuse()), opened("nuwa-16")
    for given_, question, reused in ((image, FIRST, False), (image, SECOND, True)):
        answer = pipeline.generate(given_, question, max_new_tokens=NEW)
        same(answer, fresh.generate(given_, question, max_new_tokens=NEW))
        assert answer.kept_by_layer
        assert (answer.images[0].reused, answer.reused_tokens) == (reused, 0)
    pipeline.generate([], FIRST, max_new_tokens=NEW)
    answer = pipeline.generate([], SECOND, max_new_tokens=NEW)
    same(answer, fresh.generate([], SECOND, max_new_tokens=NEW))
    assert answer.reused_tokens > 0
    same(pipeline.generate(image, SECOND, max_new_tokens=NEW), fresh.generate(image, SECOND, max_new_tokens=NEW))


def test_buffers_on_a_device(opened: Callable[..., Pipeline], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(1)[0]
    fresh = opened()
    monkeypatch.setattr(pipeline_module, "open_backend", lambda device, threads: SeparateBackend(device, threads))
    with Pipeline.open(bundle, "prunesid-16", threads=1, reuse=Reuse()) as pipeline:
        pipeline.generate(image, FIRST, max_new_tokens=NEW)
        answer = pipeline.generate(image, SECOND, max_new_tokens=40)
        assert answer.reused_tokens > 16
        same(answer, fresh.generate(image, SECOND, max_new_tokens=40))


@pytest.mark.parametrize("plan", ["none", "prunesid-16", "cdpruner-16", "nuwa-16"])
def test_any_order_of_questions(opened: Callable[..., Pipeline], plan: str) -> None:
    """Whatever came before, an answer is that of a fresh run."""
    random, frames = np.random.default_rng(3), images(3)
    pipeline, fresh = opened(plan, Reuse(frames=2, prompts=2)), opened(plan)
    texts = ["What is it?", "What is it not?", "What", "Is the cup red?"]
    expected: dict[tuple[int, str], Answer] = {}
    for _ in range(24):
        number, text = int(random.integers(-1, 3)), str(random.choice(texts))
        image = [] if number < 0 else frames[number]
        if (number, text) not in expected:
            expected[number, text] = fresh.generate(image, text, max_new_tokens=6)
        stream = pipeline.stream(image, text, max_new_tokens=6)
        if random.random() < 0.2:
            next(stream.by_token())
            stream.close()
            continue
        list(stream)
        assert stream.answer is not None
        same(stream.answer, expected[number, text])


class Block:
    def __init__(self, rows: int):
        self.shape = (1, rows, 2)


BLOCKS = [Block(1), Block(2), Block(2)]
PARTS = st.lists(st.one_of(st.integers(0, 2), st.sampled_from(BLOCKS)), min_size=1, max_size=8)


def laid_out(parts: list[Any]) -> PromptRows:
    texts: list[list[int]] = [[]]
    blocks: list[Any] = []
    for part in parts:
        if isinstance(part, Block):
            blocks.append(part)
            texts.append([])
        else:
            texts[-1].append(part)
    length = sum(part.shape[1] if isinstance(part, Block) else 1 for part in parts)
    return PromptRows.of([np.array(text, np.int64) for text in texts], blocks, np.arange(length)[None])


@settings(max_examples=300)
@given(PARTS, PARTS)
def test_the_common_beginning(new: list[Any], kept: list[Any]) -> None:
    """Against parts compared one by one: the rows of those that are the same, whole images, one row left."""
    rows = laid_out(new)
    count = 0
    for ours, theirs in zip(new, kept, strict=False):
        size = ours.shape[1] if isinstance(ours, Block) else 1
        if (ours is not theirs and not (isinstance(ours, int) and ours == theirs)) or count + size > len(rows) - 1:
            break
        count += size
    assert rows.common(laid_out(kept)) == count


def test_other_position_ids_are_another_beginning() -> None:
    block: Any = Block(2)
    positions = np.array([[0, 1, 2, 3, 4, 5]])
    texts = [np.array([7, 8]), np.array([9, 10])]
    rows = PromptRows.of(texts, [block], positions)
    assert rows.images == (ImageRows(2, 4, block),)
    assert rows.common(rows) == 5
    assert rows.common(PromptRows.of(texts, [block], positions + (positions > 2))) == 2


@pytest.mark.parametrize(("name", "value"), [("frames", -1), ("prompts", 1.5), ("prompts", True)])
def test_wrong_bounds(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; give a whole number from 0"):
        Reuse(**{name: value})


def test_one_for_each_pipeline(opened: Callable[..., Pipeline]) -> None:
    reuse = Reuse()
    opened(reuse=reuse)
    with pytest.raises(UsageError, match="belongs to another pipeline"):
        opened("none", reuse)
