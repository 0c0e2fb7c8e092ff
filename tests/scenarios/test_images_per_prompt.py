"""Prompts with several images and with none against transformers: ids, logits, greedy tokens, positions, refusals."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from test_parity import load, processor, pytorch_vision
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.build import build
from vtexport.bundle.manifest import ImagesPerPrompt
from vtexport.bundle.manifest_json import decode
from vtexport.cli.main import main
from vtexport.errors import UsageError
from vtexport.pruning import apply, select
from vtexport.runtime.language_model import Sequence as Generation
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long

LIMIT, NEW = 512, 24
QUESTION = "What is on the table?"
PLANS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "none": ("none", None, {}),
    "prunesid-16": ("prunesid", 16, {}),
    "nuwa-20-stages-1": ("nuwa", 20, {"stages": "1"}),  # whose tokens keep their position ids
    "cdpruner-12": ("cdpruner", 12, {}),  # by the question
    "fastv-24": ("fastv", 24, {}),  # inside the language model
}
PRUNED = ["prunesid-16", "nuwa-20-stages-1", "cdpruner-12"]


def noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [Image.open(PHOTO).convert("RGB"), noise(1, 150, 201), noise(2, 130, 90)]


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


IMAGE: dict[str, Any] = {"type": "image"}
CUP = {"role": "assistant", "content": [text("A cup.")]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "image in the second turn": [
        {"role": "user", "content": [text("Hello.")]},
        {"role": "assistant", "content": [text("Hi.")]},
        {"role": "user", "content": [IMAGE, text(QUESTION)]},
    ],
    "an image a turn": [
        {"role": "user", "content": [IMAGE, text(QUESTION)]},
        CUP,
        {"role": "user", "content": [IMAGE, text("And here?")]},
    ],
    "two images, then one": [
        {"role": "user", "content": [IMAGE, text("Compare:"), IMAGE]},
        CUP,
        {"role": "user", "content": [text("And this?"), IMAGE]},
    ],
    "no image": [{"role": "user", "content": [text("Hello.")]}, CUP, {"role": "user", "content": [text(QUESTION)]}],
}


def asked(images: int) -> list[dict[str, Any]]:
    """A string with so many images, as transformers takes it."""
    return [{"role": "user", "content": [*[IMAGE] * images, text(QUESTION)]}]


def count_images(messages: Sequence[dict[str, Any]]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(num_hidden_layers=4, max_position_embeddings=LIMIT)
    return save_model(make_model(config, seed=5), tmp_path_factory.mktemp("images") / "tiny-llava")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "bundle"
    for method, keep, options in PLANS.values():
        build(str(checkpoint), folder, method=method, keep=keep, options=options)
    manifest = decode((folder / "manifest.json").read_bytes(), "manifest")
    assert [plan.name for plan in manifest.plans] == list(PLANS)
    assert manifest.images_per_prompt == ImagesPerPrompt(least=0, most=None)
    assert manifest.self_check is not None
    assert manifest.self_check.conversations == ["one turn", "two turns", "two images", "no image"]
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return load(checkpoint)


class Library:
    """The PyTorch model, and what its processor makes of a conversation."""

    def __init__(self, checkpoint: Path, model: Any):
        self.model, self.processor = model, processor(checkpoint)

    def inputs(self, messages: Any, images: Sequence[Image.Image], *, raw: bool = False) -> Any:
        rendered = messages if raw else self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return self.processor(images=list(images) or None, text=rendered, return_tensors="pt")

    @torch.no_grad()
    def answer(self, plan: str, inputs: Any, count: int = NEW) -> tuple[np.ndarray, list[int], Any]:
        """The first logits, greedy tokens, and what `apply` recorded, None without pruning."""
        method, keep, options = PLANS[plan]
        pruned = (
            contextlib.nullcontext() if method == "none" else apply(self.model, method=method, keep=keep, **options)
        )
        with pruned as applied:
            if method == "cdpruner":
                ids = self.processor.tokenizer(QUESTION, add_special_tokens=False, return_tensors="pt")["input_ids"]
                applied.ask(ids)
            logits = self.model(**inputs).logits[0, -1].numpy()
            tokens = self.model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return logits, tokens[0, inputs["input_ids"].shape[1] :].tolist(), applied


@pytest.fixture(scope="module")
def library(checkpoint: Path, model: Any) -> Library:
    return Library(checkpoint, model)


def with_logits(pipeline: Pipeline, *arguments: Any, **options: Any) -> tuple[Any, np.ndarray]:
    """An answer, and the logits that its first token was chosen from."""
    seen = []
    prefill = pipeline._language_model.prefill

    def recorded(*args: Any) -> np.ndarray:
        seen.append(prefill(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._language_model, "prefill", recorded)
        answer = pipeline.generate(*arguments, **options)
    return answer, seen[0]


def assert_same(found: tuple[Any, np.ndarray], wanted: tuple[np.ndarray, list[int], Any]) -> None:
    answer, logits = found
    np.testing.assert_allclose(logits, wanted[0], rtol=0, atol=3e-5 * float(np.abs(wanted[0]).max()))
    assert answer.token_ids == wanted[1]


@pytest.mark.parametrize("dialect", ["modern", "classic"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_without_pruning_any_number_of_images_is_transformers(
    count: int, dialect: str, bundle: Path, library: Library
) -> None:
    inputs = library.inputs(asked(count), IMAGES[:count])
    wanted = library.answer("none", inputs)
    assert len(set(wanted[1])) > 4, "a model that repeats itself proves little"
    pipeline = Pipeline.open(bundle, "none", dialect=dialect)
    found = with_logits(pipeline, IMAGES[:count], QUESTION, max_new_tokens=NEW)
    assert_same(found, wanted)
    answer = found[0]
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.visual_tokens == 64 * count
    assert answer.keep_indices == list(range(64)) * count
    read = pipeline._prompts.read(QUESTION, images=count)
    assert pipeline._unpruned(read).tolist() == inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("plan", ["none", *PRUNED[:2]])
def test_conversations(name: str, plan: str, bundle: Path, library: Library) -> None:
    messages = CONVERSATIONS[name]
    images = IMAGES[: count_images(messages)]
    wanted = library.answer(plan, library.inputs(messages, images))
    found = with_logits(Pipeline.open(bundle, plan), images or None, messages, max_new_tokens=NEW)
    assert_same(found, wanted)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("plan", PRUNED)
def test_each_image_is_pruned_to_the_budget(plan: str, count: int, bundle: Path, library: Library) -> None:
    """The same rows of each as under `apply`, which for nuwa leaves gaps in the position ids of every image."""
    images = IMAGES[:count]
    wanted = library.answer(plan, library.inputs(asked(count), images))
    pipeline = Pipeline.open(bundle, plan)
    found = with_logits(pipeline, images, QUESTION, max_new_tokens=NEW)
    assert_same(found, wanted)
    answer, kept = found[0], [each.keep_indices[0].tolist() for each in wanted[2].selections]
    assert [image.keep_indices for image in answer.images] == kept
    assert len({tuple(each) for each in kept}) == count, "images that keep the same prove little"
    assert answer.keep_indices == [index for each in kept for index in each]
    assert [image.visual_tokens for image in answer.images] == [PLANS[plan][1]] * count
    assert answer.visual_tokens == len(answer.keep_indices)
    assert answer.plan == plan

    visual = pipeline.encode(images, QUESTION)
    assert pipeline.generate(visual, QUESTION, max_new_tokens=NEW).token_ids == answer.token_ids
    mixed = [visual[0], *images[1:]]
    assert pipeline.generate(mixed, QUESTION, max_new_tokens=NEW).token_ids == answer.token_ids


@torch.no_grad()
def test_kept_rows_put_together_by_hand(bundle: Path, library: Library) -> None:
    """Without `apply`: selections by the reference, embeddings and position ids written out here."""
    images, model = IMAGES[:2], library.model
    embed, ids = (
        model.get_input_embeddings(),
        library.processor.tokenizer(
            library.processor.apply_chat_template(CONVERSATIONS["an image a turn"], add_generation_prompt=True)
        )["input_ids"],
    )
    blocks = []
    for image in images:
        pixels = library.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        features, scores = pytorch_vision(model, pixels)
        chosen = select("prunesid", features.numpy(), scores.numpy(), keep=16)
        blocks.append(model.model.multi_modal_projector(torch.from_numpy(chosen.kept_features)))
    at = [place for place, token in enumerate(ids) if token == model.config.image_token_id]
    spans = [ids[: at[0]], ids[at[0] + 1 : at[1]], ids[at[1] + 1 :]]
    first, second, third = (embed(torch.tensor([span])) for span in spans)
    embeds = torch.cat([first, blocks[0], second, blocks[1], third], dim=1)
    logits = model(inputs_embeds=embeds, position_ids=torch.arange(embeds.shape[1])[None]).logits[0, -1].numpy()
    tokens = model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), max_new_tokens=NEW, do_sample=False
    )
    pipeline = Pipeline.open(bundle, "prunesid-16")
    found = with_logits(pipeline, images, CONVERSATIONS["an image a turn"], max_new_tokens=NEW)
    assert_same(found, (logits, tokens[0].tolist(), None))


def test_raw_prompts(bundle: Path, library: Library) -> None:
    for prompt in ("You see <image> and <image>, so", "<image><image>", "Once upon a time"):
        images = IMAGES[: prompt.count("<image>")]
        wanted = library.answer("prunesid-16", library.inputs(prompt, images, raw=True), 12)
        pipeline = Pipeline.open(bundle, "prunesid-16")
        assert_same(with_logits(pipeline, images, prompt, max_new_tokens=12, raw_prompt=True), wanted)


@pytest.mark.parametrize("plan", PLANS)
def test_text_alone_is_the_untouched_model(plan: str, bundle: Path, library: Library) -> None:
    """By every kind of plan; one that prunes inside the language model runs its segments without the steps."""
    wanted = library.answer("none", library.inputs(asked(0), []))
    pipeline, sequences = Pipeline.open(bundle, plan), []
    start = pipeline._language_model.start

    def recorded(*arguments: Any) -> Generation:
        sequences.append(start(*arguments))
        return sequences[-1]

    pipeline._language_model.start = recorded  # type: ignore[method-assign]
    found = with_logits(pipeline, [], QUESTION, max_new_tokens=NEW)
    assert_same(found, wanted)
    answer = found[0]
    assert (answer.visual_tokens, answer.keep_indices, answer.images, answer.kept_by_layer) == (0, [], [], {})
    assert (answer.plan, answer.reports, answer.warnings, answer.route) == (plan, {}, [], None)
    assert [answer.timings_ms[name] for name in ("preprocess", "vision", "prune")] == [0.0] * 3
    assert {cache.length for cache in sequences[0].caches} == {answer.prompt_tokens + len(answer.token_ids) - 1}
    for image in (None, [], ()):
        assert pipeline.generate(image, asked(0), max_new_tokens=NEW).token_ids == answer.token_ids


def test_steps_are_for_one_image(bundle: Path, library: Library) -> None:
    pipeline = Pipeline.open(bundle, "fastv-24")
    visual = pipeline.encode(IMAGES)
    with pytest.raises(UsageError, match=r"plan fastv-24 prunes inside the language model, .* has 2; open a plan that"):
        pipeline.generate(visual[:2], QUESTION)
    with pytest.raises(UsageError, match="plan fastv-24 prunes inside the language model"):
        pipeline.stages.prefill(visual[:2], pipeline._prompts.read(QUESTION, images=2), 4)
    wanted = library.answer("fastv-24", library.inputs(asked(1), IMAGES[:1]))
    assert_same(with_logits(pipeline, visual[:1], QUESTION, max_new_tokens=NEW), wanted)


def test_conversations_that_name_their_images(bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.open(bundle, "prunesid-16")
    IMAGES[0].save(tmp_path / "a.png")
    IMAGES[1].save(tmp_path / "b.png")
    first, second = {**IMAGE, "path": str(tmp_path / "a.png")}, {**IMAGE, "url": (tmp_path / "b.png").as_uri()}
    named = [
        {"role": "user", "content": [first, text(QUESTION)]},
        CUP,
        {"role": "user", "content": [second, text("And here?")]},
    ]
    wanted = pipeline.generate(IMAGES[:2], CONVERSATIONS["an image a turn"], max_new_tokens=8)
    answer = pipeline.generate(None, named, max_new_tokens=8)
    assert answer.token_ids == wanted.token_ids
    assert answer.warnings == []
    other = pipeline.generate([tmp_path / "a.png", IMAGES[1]], named, max_new_tokens=8)
    assert other.token_ids == wanted.token_ids
    assert len(other.warnings) == 1
    assert other.warnings[0].startswith("image 2: the image argument was used, not the image that the conversation")
    assert [len(image.warnings) for image in other.images] == [0, 1]
    with pytest.raises(UsageError, match="the conversation holds 2 images, and encode without images is for one"):
        pipeline.encode(None, named)


@pytest.mark.parametrize(
    ("given", "prompt", "raw", "said"),
    [
        (2, CONVERSATIONS["image in the second turn"], False, "holds 1 images .* and 2 are given"),
        (1, CONVERSATIONS["an image a turn"], False, "holds 2 images .* and 1 is given"),
        (0, CONVERSATIONS["an image a turn"], False, "holds 2 images .* and 0 are given"),
        (1, CONVERSATIONS["no image"], False, "holds 0 images .* and 1 is given"),
        (2, "a <image>", True, "holds 1 images .* and 2 are given"),
        (None, QUESTION, False, r"there is no image; give one.* give \[\] to ask without an image"),
        (None, CONVERSATIONS["an image a turn"], False, "there is no image: image part 1 of 2 names none"),
    ],
)
def test_mismatches_come_before_a_vision_pass(
    given: int | None, prompt: Any, raw: bool, said: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.open(bundle, "prunesid-16")
    monkeypatch.setattr(pipeline.stages, "vision", lambda *_: pytest.fail("it ran the vision graph"))
    images = None if given is None else IMAGES[:given]
    with pytest.raises(UsageError, match=said):
        pipeline.generate(images, prompt, raw_prompt=raw)


def test_prefill_wants_as_many_as_there_are_places(bundle: Path) -> None:
    pipeline = Pipeline.open(bundle, "prunesid-16")
    visual = pipeline.encode(IMAGES[0])
    with pytest.raises(UsageError, match=r"has places for 2 images and visual tokens of 1 are given"):
        pipeline.stages.prefill(visual, pipeline._prompts.read(QUESTION, images=2), 4)


def test_too_many_images_for_the_models_positions(bundle: Path) -> None:
    pipeline = Pipeline.open(bundle, "none")
    visual = pipeline.encode(IMAGES[0])
    with pytest.raises(UsageError, match=f"more than the model's {LIMIT} positions"):
        pipeline.generate([visual] * 8, QUESTION)


@pytest.mark.parametrize(
    ("limits", "refused", "said"),
    [
        (ImagesPerPrompt(least=1, most=1), [0, 2], r"has {} images, and this model \(llava\) takes 1 in a prompt"),
        (ImagesPerPrompt(least=1), [0], "takes 1 or more in a prompt"),
        (ImagesPerPrompt(most=2), [3], "takes 0 to 2 in a prompt"),
    ],
)
def test_models_that_take_another_number_say_so(
    limits: ImagesPerPrompt, refused: list[int], said: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.open(bundle, "prunesid-16")
    monkeypatch.setattr(pipeline.bundle.manifest, "images_per_prompt", limits)
    for count in range(4):
        if count in refused:
            with pytest.raises(UsageError, match=said.format(count)):
                pipeline.generate(IMAGES[:count], QUESTION)
        elif limits.take(count):
            assert pipeline.generate(IMAGES[:count], QUESTION, max_new_tokens=1).visual_tokens == 16 * count


def test_a_manifest_without_the_field_takes_any_number(bundle: Path) -> None:
    """As bundles from before it was there, all of which are LLaVA's."""
    data = msgspec.json.decode((bundle / "manifest.json").read_bytes())
    del data["images_per_prompt"]
    assert decode(msgspec.json.encode(data), "manifest").images_per_prompt == ImagesPerPrompt()


def test_the_command_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, IMAGES, strict=False):
        image.save(path)
    pipeline = Pipeline.open(bundle, "prunesid-16")
    ask = ["run", str(bundle), "--plan", "prunesid-16", "--prompt", QUESTION, "--max-new-tokens", "6"]
    both = [argument for path in paths for argument in ("--image", str(path))]
    assert main([*ask, *both, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    wanted = pipeline.generate(paths, QUESTION, max_new_tokens=6)
    assert printed["token_ids"] == wanted.token_ids
    assert [image["keep_indices"] for image in printed["images"]] == [image.keep_indices for image in wanted.images]
    assert main([*ask, *both]) == 0
    assert "32 visual tokens of 2 images," in capsys.readouterr().err
    assert main([*ask, "--no-image"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{pipeline.generate([], QUESTION, max_new_tokens=6).text}\n"
    assert "no image," in err
    for wrong in (ask, [*ask, *both, "--no-image"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
