"""Every pruning method in a whole bundle: the answer of the PyTorch model under `apply`, and TensorRT-RTX engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from pruning_cases import has_own_op
from separate_memory import SeparateBackend, guarded
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.backends.registry import compile_bundle
from vtexport.backends.targets import find_target
from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.pruning import apply, list_methods
from vtexport.runtime import pipeline as pipeline_module
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long

METHODS = [method.name for method in list_methods()]
KEEP = 16  # of 64; a square, for pool
ON_AVERAGE = 40  # over the layers, for methods that prune inside the language model
QUESTION = "What is on the table?"


def budget(name: str) -> int | None:
    if name == "none":
        return None
    return KEEP if has_own_op(name) else ON_AVERAGE


def plan(name: str) -> str:
    return name if name == "none" else f"{name}-{budget(name)}"


def bundle_of_all(checkpoint: Path, folder: Path, precision: str) -> Path:
    """One bundle with a plan of every method; each build adds its graphs to what stands there."""
    for name in METHODS:
        build(str(checkpoint), folder, method=name, keep=budget(name), precision=precision)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four decoder layers, so that PyramidDrop's three steps have a place each."""
    return save_model(make_model(make_config(num_hidden_layers=4)), tmp_path_factory.mktemp("deeper") / "tiny-llava")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of_all(checkpoint, tmp_path_factory.mktemp("methods") / "tiny", "fp32")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.mark.parametrize("dialect", ["modern", "classic"])
@pytest.mark.parametrize("name", METHODS)
def test_the_bundle_answers_like_the_pytorch_model(
    name: str, dialect: str, bundle: Path, model: Any, checkpoint: Path
) -> None:
    from transformers import AutoProcessor

    read = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = read.apply_chat_template(messages, add_generation_prompt=True)
    given = read(images=Image.open(PHOTO), text=text, return_tensors="pt")
    with apply(model, method=name, keep=budget(name)) as applied:
        if "text" in applied.schedule.signals:
            question = read.tokenizer(QUESTION, add_special_tokens=False, return_tensors="pt")
            applied.ask(question["input_ids"])
        tokens = model.generate(**given, max_new_tokens=16, do_sample=False)[0, given["input_ids"].shape[1] :].tolist()
    answer = Pipeline.open(bundle, plan(name), dialect=dialect).generate(PHOTO, QUESTION, max_new_tokens=16)
    np.testing.assert_array_equal(answer.keep_indices, applied.selections[0].keep_indices[0])
    assert answer.token_ids == tokens
    assert list(answer.kept_by_layer.values()) == [step.keep_indices[0].tolist() for step in applied.steps]
    assert answer.visual_tokens == applied.schedule.visual_tokens


def test_plans_share_weights_and_vision_towers(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert {plan.name for plan in manifest.plans} == {plan(name) for name in METHODS}
    signals = {name for name in manifest.graphs if name.startswith("vision.")}
    assert signals == {name for plan in manifest.plans for name in plan.graphs.vision}
    whole = [plan.graphs.decoder for plan in manifest.plans if not plan.steps]
    assert whole == [[["decoder_0.modern", "decoder_0.classic"]]] * len(whole)
    assert len([name for name in manifest.files if name.endswith(".safetensors")]) == 1


def test_graphs_of_steps_for_native_ops_are_the_same_without_functions(bundle: Path) -> None:
    opened = open_bundle(bundle)

    def load(name: str) -> onnx.ModelProto:
        return onnx.load(opened.path(opened.manifest.graphs[name].file), load_external_data=False)

    stepped = [each for each in opened.manifest.plans if each.steps]
    assert stepped
    for each in opened.manifest.plans:
        for bare_name, name in each.graphs.prune_llm:
            whole, bare = load(name), load(bare_name)
            assert len(whole.functions) == 1
            assert list(bare.functions) == []
            assert whole.graph == bare.graph
            assert [(op.domain, op.op_type) for op in bare.graph.node if op.domain] == [
                (whole.functions[0].domain, whole.functions[0].name)
            ]


def test_tensorrt_rtx_builds_every_graph(checkpoint: Path, tmp_path: Path) -> None:
    """Prune graphs, decoder segments and the steps between them, vision towers with every set of signals."""
    folder = bundle_of_all(checkpoint, tmp_path / "tiny", "fp16")
    opened = open_bundle(folder)
    record = compile_bundle(opened, find_target("rtx"))
    # The first of two variants with the same function bodies; native ops are not the library's yet.
    stages = [stage for each in opened.manifest.plans for stage in each.graphs.stages]
    wanted = {next(name for name in stage if not name.endswith(".native")) for stage in stages}
    assert set(record.engines) == wanted
    assert {"pyramiddrop-40.prune_llm_2", "vitcop-16.prune_llm_0", "decoder_1-2.modern", "cdpruner-16.prune"} <= wanted
    assert all((folder / "engines" / "rtx" / engine.file).stat().st_size > 1000 for engine in record.engines.values())


@pytest.mark.parametrize("name", METHODS)
def test_values_stay_on_the_device(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend with memory of its own answers as ONNX Runtime does; only logits leave it once an image is encoded."""
    expected = Pipeline.open(bundle, plan(name)).generate(PHOTO, QUESTION, max_new_tokens=8)
    backends: list[SeparateBackend] = []

    def opened(device: str, threads: int | None) -> SeparateBackend:
        backends.append(SeparateBackend(device, threads))
        return backends[-1]

    monkeypatch.setattr(pipeline_module, "open_backend", opened)
    with Pipeline.open(bundle, plan(name)) as pipeline:
        (memory,) = (each.memory for each in backends)
        for stage in ("vision", "prefill", "decode"):
            monkeypatch.setattr(pipeline.stages, stage, guarded(memory)(getattr(pipeline.stages, stage)))
        answer = pipeline.generate(PHOTO, QUESTION, max_new_tokens=8)
    assert answer.token_ids == expected.token_ids
    assert answer.keep_indices == expected.keep_indices
    assert answer.kept_by_layer == expected.kept_by_layer
    assert memory.reads == len(answer.token_ids)
    entered, reports = 2, len(answer.reports)  # keep_indices and positions
    assert memory.downloads == entered + reports + len(answer.kept_by_layer)
