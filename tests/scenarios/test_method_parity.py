"""Bundles of VisionZip, DivPrune and CDPruner against the references on what PyTorch computes; and the question."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_parity import load, processor, pytorch_inputs, pytorch_vision
from tiny_llava import PHOTO

from vtexport.backends.trt.profiles import profiles
from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import UsageError
from vtexport.pruning import select
from vtexport.runtime.pipeline import Pipeline

KEEP = 16
QUESTIONS = ("What is on the table?", "Count the spoons, please, and name their colours.")


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of all three in one bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "methods"
    for method, options in (
        ("visionzip", {}),
        ("divprune", {}),
        ("divprune", {"space": "vision"}),
        ("cdpruner", {}),
        ("cdpruner", {"relevance": "none"}),
    ):
        build(str(tiny_checkpoint), folder, method=method, keep=KEEP, options=options)
    return folder


@pytest.fixture(scope="module")
def computed(tiny_checkpoint: Path) -> dict[str, Any]:
    """The PyTorch model, and its features with CLS, scores, keys and projected patches of the photograph."""
    model = load(tiny_checkpoint)
    pixels = pytorch_inputs(tiny_checkpoint, Image.open(PHOTO))["pixel_values"]
    features, scores = pytorch_vision(model, pixels)
    with torch.no_grad():
        tower = model.model.vision_tower
        block = tower.encoder.layers[-2]
        entering = tower(pixels, output_hidden_states=True).hidden_states[-3]
        keys = block.self_attn.k_proj(block.layer_norm1(entering))[:, 1:].unflatten(-1, (4, 12))
        projected = model.model.multi_modal_projector(features[:, 1:])
    return {"model": model, "features": features, "scores": scores, "keys": keys, "projected": projected}


def embedded(computed: dict[str, Any], checkpoint: Path, question: str) -> torch.Tensor:
    """[1, M, W]: the question's own tokens by the language model's embeddings."""
    ids = processor(checkpoint).tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return computed["model"].get_input_embeddings()(ids).detach()


def assert_same(visual: Any, expected: Any, block: torch.Tensor) -> None:
    assert visual.keep_indices.tolist() == expected.keep_indices[0].tolist()
    assert visual.positions.tolist() == [list(range(KEEP))]
    np.testing.assert_allclose(visual.embeddings, block, rtol=0, atol=3e-5 * float(block.abs().max()))


def test_visionzip(bundle: Path, computed: dict[str, Any]) -> None:
    visual = Pipeline.open(bundle, f"visionzip-{KEEP}").encode(PHOTO)
    expected = select("visionzip", computed["features"], computed["scores"], keys=computed["keys"], keep=KEEP)
    assert expected.merged is not None
    assert expected.merged.any()
    with torch.no_grad():
        block = computed["model"].model.multi_modal_projector(expected.kept_features)
    assert_same(visual, expected, block)


def test_divprune(bundle: Path, computed: dict[str, Any]) -> None:
    visual = Pipeline.open(bundle, f"divprune-{KEEP}").encode(PHOTO)
    expected = select("divprune", computed["projected"], keep=KEEP)
    assert_same(visual, expected, expected.kept_features)


def test_divprune_before_the_projector(bundle: Path, computed: dict[str, Any]) -> None:
    visual = Pipeline.open(bundle, f"divprune-{KEEP}-space-vision").encode(PHOTO)
    expected = select("divprune", computed["features"][:, 1:], keep=KEEP, space="vision")
    assert_same(visual, expected, computed["projected"][:, expected.keep_indices[0]])


def test_cdpruner_without_relevance(bundle: Path, computed: dict[str, Any]) -> None:
    pipeline = Pipeline.open(bundle, f"cdpruner-{KEEP}-relevance-none")
    assert not pipeline.takes_question
    visual = pipeline.encode(PHOTO)
    assert visual.question is None
    expected = select("cdpruner", computed["projected"], keep=KEEP, relevance="none")
    assert_same(visual, expected, expected.kept_features)


@pytest.fixture(scope="module")
def asked(bundle: Path) -> Pipeline:
    return Pipeline.open(bundle, f"cdpruner-{KEEP}", threads=1)


@pytest.mark.parametrize("question", QUESTIONS)
def test_cdpruner(asked: Pipeline, tiny_checkpoint: Path, computed: dict[str, Any], question: str) -> None:
    visual = asked.encode(PHOTO, question)
    text = embedded(computed, tiny_checkpoint, question)
    expected = select("cdpruner", computed["projected"], text_embeds=text, keep=KEEP)
    assert_same(visual, expected, expected.kept_features)
    assert visual.question == question


def test_another_question_picks_others(asked: Pipeline) -> None:
    first, second = (asked.encode(PHOTO, question) for question in QUESTIONS)
    assert first.keep_indices.tolist() != second.keep_indices.tolist()
    whole = asked.generate(PHOTO, QUESTIONS[0], max_new_tokens=6)
    assert whole.keep_indices == first.keep_indices.tolist()
    assert asked.generate(first, QUESTIONS[0], max_new_tokens=6).token_ids == whole.token_ids
    # Knowingly: the second question sees what was picked for the first.
    assert asked.generate(first, QUESTIONS[1], max_new_tokens=6).keep_indices == first.keep_indices.tolist()


def test_the_question_is_the_last_users_text(asked: Pipeline) -> None:
    """Not the template's words, not what was said before."""
    plain = asked.encode(PHOTO, QUESTIONS[1])
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    assert asked.encode(PHOTO, conversation).keep_indices.tolist() == plain.keep_indices.tolist()
    assert asked.encode(PHOTO, conversation).question == QUESTIONS[1]
    text, ids = asked._prompts.question(f"USER: <image>\n{QUESTIONS[1]}</s>", raw=True)
    assert "<image>" not in text
    assert asked.bundle.manifest.text.image_token_id not in ids
    assert not set(asked.bundle.manifest.text.eos_token_ids) & set(ids.tolist())
    raw = asked.generate(PHOTO, f"USER: <image>\n{QUESTIONS[1]} ASSISTANT:", raw_prompt=True, max_new_tokens=1)
    assert len(set(raw.keep_indices)) == KEEP


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, rf"plan cdpruner-{KEEP} picks visual tokens by the question; give it as well"),
        ("  ", "the prompt is empty"),
        ("a <image> b", "stands for the image"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the last user message has no text"),
        ([{"role": "user", "content": "no image"}], "holds 0 images"),
    ],
)
def test_no_question(asked: Pipeline, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked.encode(PHOTO, prompt)


def test_the_graph_takes_questions_of_any_length(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    graph = manifest.graphs[f"cdpruner-{KEEP}.prune"]
    inputs = {tensor.name: tensor.shape for tensor in graph.inputs}
    assert inputs == {"features": [1, 65, 48], "text_embeds": [1, "M", 72]}
    assert {tensor.name: tensor.dtype for tensor in graph.inputs}["text_embeds"] == "float32"
    model = onnx.load(bundle / graph.file, load_external_data=False)
    assert model.graph.input[1].type.tensor_type.shape.dim[1].dim_param == "M"
    (found,) = profiles(manifest, graph, text_tokens=100)
    assert (found.name, found.shapes) == ("question", {"text_embeds": [[1, 1, 72], [1, 16, 72], [1, 100, 72]]})
    (found,) = profiles(manifest, graph, text_tokens=10_000)
    assert found.shapes["text_embeds"][2] == [1, 256, 72]  # the model's positions


def test_half_precision_asks_as_well(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The embedding table is float16 there, the graph's input stays float32."""
    folder = build(str(tiny_checkpoint), tmp_path / "half", method="cdpruner", keep=KEEP, precision="fp16").folder
    answer = Pipeline.open(folder).generate(PHOTO, QUESTIONS[0], max_new_tokens=3)
    assert len(set(answer.keep_indices)) == KEEP


def test_commands(bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    plan = f"cdpruner-{KEEP}"
    given = [str(bundle), "--plan", plan, "--image", str(PHOTO)]
    assert main(["run", *given, "--prompt", QUESTIONS[0], "--max-new-tokens", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    picture = str(tmp_path / "kept.png")
    assert main(["show", *given, "-o", picture]) == 2
    assert "picks visual tokens by the question; give it as well (--prompt" in capsys.readouterr().err
    assert main(["show", *given, "-o", picture, "--prompt", QUESTIONS[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keep_indices"] == answer["keep_indices"]

    refused = ["build", "--model", str(tiny_checkpoint), "--method", "cdpruner", "--keep", "16", "-o", picture + "b"]
    assert main([*refused, "--set", "relevance=clip"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"cdpruner needs CLIP's image embeddings .* which no bundle has", error)
    assert main(refused) == 0
    assert "note: cdpruner takes relevance from the language model's embeddings" in capsys.readouterr().err


def test_tokens_picked_for_another_question_are_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = build(str(tiny_checkpoint), tmp_path / "bundle", method="cdpruner", keep=16).folder
    pipeline = Pipeline.open(bundle)
    visual = pipeline.encode(PHOTO, "What is on the table?")
    assert pipeline.generate(visual, "What is on the table?", max_new_tokens=2).warnings == []
    (warning,) = pipeline.generate(visual, "Which colour?", max_new_tokens=2).warnings
    assert "picked for 'What is on the table?'; encode the image with this question" in warning
