"""Bundles that prune inside the language model against `apply` on PyTorch: tokens, caches, prompts, builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_parity import load, processor
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import UsageError
from vtexport.pruning import apply
from vtexport.runtime.language_model import Sequence
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long

LAYERS, LIMIT, NEW = 4, 384, 64
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("vitcop", 16, {}),
    ("vitcop", 24, {"deep_positions": "original", "merge": "mean"}),
    ("nuwa", 20, {}),
    ("nuwa", 9, {"variant": "paper"}),
    ("fastv", 24, {}),
    ("fastv", 40, {"layer": 2}),
    ("pyramiddrop", 30, {}),
    ("pyramiddrop", 44, {"positions": "original"}),
]
IDS = ["-".join([name, str(keep), *map(str, options.values())]) for name, keep, options in CASES]
QUESTION = "What is on the table?"
IMAGE_AND = {"type": "image"}
PROMPTS: dict[str, Any] = {
    "question": QUESTION,
    "long": "Tell me all about it: " + "what it is, where it stands, who made it; " * 3,
    "two turns": [
        {"role": "user", "content": [IMAGE_AND, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cup of coffee."}]},
        {"role": "user", "content": [{"type": "text", "text": "What colour is it?"}]},
    ],
    "image first": "<image>What is it?",
    "image last": "Look at this: <image>",
    "image in the middle": "You see <image> and say",
    "image alone": "<image>",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(num_hidden_layers=LAYERS, max_position_embeddings=LIMIT)
    return save_model(make_model(config, seed=5), tmp_path_factory.mktemp("llm") / "tiny-llava")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "bundle"
    for method, keep, options in CASES:
        build(str(checkpoint), folder, method=method, keep=keep, options=options)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return load(checkpoint)


@pytest.fixture(scope="module")
def eager(checkpoint: Path, model: Any) -> Callable[[Any, int], list[int]]:
    """Greedy tokens of the PyTorch model, as it is at the moment, for a prompt that the pipeline takes too."""
    read, image = processor(checkpoint), Image.open(PHOTO)

    def tokens(prompt: Any, count: int) -> list[int]:
        text = prompt
        if not is_raw(prompt):
            first = {"role": "user", "content": [IMAGE_AND, {"type": "text", "text": prompt}]}
            text = read.apply_chat_template([first] if isinstance(prompt, str) else prompt, add_generation_prompt=True)
        given = read(images=image, text=text, return_tensors="pt")
        made = model.generate(**given, max_new_tokens=count, do_sample=False)
        return made[0, given["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]

    return tokens


def is_raw(prompt: Any) -> bool:
    return isinstance(prompt, str) and "<image>" in prompt


def plan_of(bundle: Path, number: int) -> str:
    return open_bundle(bundle).manifest.plans[number].name


def recorded(pipeline: Pipeline) -> list[Sequence]:
    """The sequences that the pipeline starts from now on."""
    seen: list[Sequence] = []
    start = pipeline._language_model.start

    def record(*arguments: int) -> Sequence:
        seen.append(start(*arguments))
        return seen[-1]

    pipeline._language_model.start = record  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_decoding_equals_the_eager_model(
    number: int, bundle: Path, model: Any, eager: Callable[[Any, int], list[int]]
) -> None:
    """64 greedy tokens of a question, shorter answers to prompts of every form; what every step keeps."""
    method, keep, options = CASES[number]
    pipeline = Pipeline.open(bundle, plan_of(bundle, number), dialect="modern" if number % 2 else "classic")
    plan, different = pipeline.plans[0], set()
    sequences = recorded(pipeline)
    visual = pipeline.encode(PHOTO)  # one frame serves all the questions
    for name, prompt in PROMPTS.items():
        count = NEW if name in {"question", "two turns"} else 12
        with apply(model, method=method, keep=keep, **options) as applied:
            expected = eager(prompt, count)
        answer = pipeline.generate(visual, prompt, max_new_tokens=count, raw_prompt=is_raw(prompt))
        assert answer.token_ids == expected, name
        assert list(answer.kept_by_layer.values()) == [step.keep_indices[0].tolist() for step in applied.steps]
        different.add(tuple(expected[:12]))
        if count == NEW:
            assert len(expected) == NEW
            assert len(set(expected)) > 8, "a model that repeats itself proves little"

        # A cache a segment, each with its own length: what `inspect` says of the image, and the text.
        text = answer.prompt_tokens - plan.visual_tokens + len(answer.token_ids) - 1
        by_layer = [
            cache.length - text
            for cache, segment in zip(sequences[-1].caches, plan.segments, strict=True)
            for _ in range(segment.layers)
        ]
        assert by_layer == plan.tokens_by_layer()
        assert all(cache.capacity == cache.length + 1 for cache in sequences[-1].caches if len(expected) == count)
    assert abs(np.mean(plan.tokens_by_layer()) - keep) <= 0.02 * keep
    assert len(different) > len(PROMPTS) - 2, "prompts should matter"


def test_position_modes_and_pruning_matter(bundle: Path, checkpoint: Path, model: Any, eager: Any) -> None:
    """The variants give other answers, so that the test above can tell them apart."""
    answers = [eager(QUESTION, 24)]
    for method, keep, options in (
        ("pyramiddrop", 30, {}),
        ("pyramiddrop", 30, {"positions": "original"}),
        ("vitcop", 16, {}),
        ("vitcop", 16, {"deep_positions": "original"}),
        ("vitcop", 16, {"merge": "mean"}),
        ("nuwa", 20, {}),
        ("nuwa", 20, {"variant": "paper"}),
    ):
        with apply(model, method=method, keep=keep, **options):
            answers.append(eager(QUESTION, 24))
    assert len({tuple(each) for each in answers}) == len(answers)
    assert eager(QUESTION, 24) == answers[0], "the model is as it was"


@pytest.mark.parametrize("method", ["vitcop", "nuwa"])
def test_text_alone_is_not_touched(method: str, model: Any) -> None:
    ids = torch.tensor([[1, 20, 21, 22]])
    with torch.no_grad():
        untouched = model(input_ids=ids).logits
        with apply(model, method=method, keep=16):
            assert torch.equal(model(input_ids=ids).logits, untouched)


@pytest.mark.parametrize("number", [0, 3, 6], ids=[IDS[0], IDS[3], IDS[6]])
def test_prompts_up_to_the_last_position(number: int, bundle: Path, model: Any, eager: Any) -> None:
    method, keep, options = CASES[number]
    pipeline = Pipeline.open(bundle, plan_of(bundle, number))
    visual = pipeline.encode(PHOTO)
    used = visual.position_span + len(pipeline._prompts.read("<image>", raw=True).before)
    prompt = "<image>" + "What is on the table? " * 40
    text = pipeline._prompts.tokenizer.encode(prompt.removeprefix("<image>"), add_special_tokens=False)
    end = next(at for count, (_, at) in enumerate(text.offsets, 1) if count == LIMIT - used - 8)
    prompt = prompt[: len("<image>") + end]
    room = LIMIT - used - len(pipeline._prompts.read(prompt, raw=True).after)
    assert 1 <= room <= 16
    with apply(model, method=method, keep=keep, **options):
        assert pipeline.generate(visual, prompt, max_new_tokens=room, raw_prompt=True).token_ids == eager(prompt, room)
    with pytest.raises(UsageError, match=f"more than the model's {LIMIT} positions"):
        pipeline.generate(visual, prompt, max_new_tokens=room + 1, raw_prompt=True)


def test_a_frame_serves_several_questions(bundle: Path) -> None:
    """Labels of stage I travel with it, and a sequence leaves nothing behind for the next."""
    pipeline = Pipeline.open(bundle, plan_of(bundle, 0))
    visual = pipeline.encode(PHOTO)
    assert set(visual.aux_outputs) == {"labels"}
    once = [pipeline.generate(visual, PROMPTS[name], max_new_tokens=8).token_ids for name in ("question", "long")]
    again = [pipeline.generate(visual, PROMPTS[name], max_new_tokens=8).token_ids for name in ("long", "question")]
    fresh = pipeline.generate(PHOTO, QUESTION, max_new_tokens=8).token_ids
    assert once == again[::-1]
    assert once[0] == fresh


@pytest.mark.parametrize(
    ("method", "keep", "said"),
    [
        ("vitcop", 64, "keep=64 is not allowed for vitcop on this model; give a whole number from 7 to 25"),
        ("vitcop", 10, "from 7 to 25, of which 8 and 12 are the nearest"),
        ("nuwa", 37, "keep=37 is not allowed for nuwa on this model; give a whole number from 1 to 36"),
        ("fastv", 16, "keep=16 is not allowed for fastv on this model; give a whole number from 17 to 64"),
        ("pyramiddrop", 65, "keep=65 is not allowed for pyramiddrop on this model; give a whole number from 17 to 64"),
    ],
)
def test_impossible_budgets_are_refused(
    method: str, keep: int, said: str, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "b"
    command = ["build", "--model", str(checkpoint), "--method", method, "--keep", str(keep), "-o", str(folder)]
    assert main(command) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(said)
    assert not folder.exists()


def test_a_plan_adds_graphs_and_no_weights(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "b"
    build(str(checkpoint), folder, method="none")
    before = open_bundle(folder).manifest.files
    stored = {name: (folder / name).stat().st_ino for name in before if name.endswith(".safetensors")}
    build(str(checkpoint), folder, method="fastv", keep=24)
    after = open_bundle(folder).manifest
    added = set(after.files) - set(before)
    assert {name.partition(".")[0] for name in added} == {"onnx/fastv-24", "onnx/decoder_0-0", "onnx/decoder_1-3"}
    assert all(name.endswith(".onnx") for name in added)
    assert {name: (folder / name).stat().st_ino for name in stored} == stored
    # A graph of its own holds sizes, positions and no matrix of the model.
    assert max(after.files[name].bytes for name in added) < 200_000
    assert main(["inspect", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["by_layer"]
    row = 2 * 2 * 16 * 4  # keys and values, 2 heads of 16, float32
    assert shown["fastv-24"] == {"visual_tokens": [64, 11, 11, 11], "kv_bytes": [64 * row, *[11 * row] * 3]}
    assert shown["none"]["visual_tokens"] == [64] * LAYERS


def test_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    for method, keep in (("vitcop", 16), ("pyramiddrop", 30)):
        build(str(checkpoint), folder, method=method, keep=keep, precision="fp16")
        pipeline = Pipeline.open(folder, f"{method}-{keep}")
        sequences = recorded(pipeline)
        answer = pipeline.generate(PHOTO, QUESTION, max_new_tokens=16)
        assert 1 < len(answer.token_ids) <= 16
        steps = pipeline.plans[0].steps
        assert [len(kept) for kept in answer.kept_by_layer.values()] == [step.keep for step in steps]
        assert all(value.dtype == "float16" for value in sequences[0].caches[-1].past().values())
