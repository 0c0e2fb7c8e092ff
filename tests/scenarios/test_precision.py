"""Bundles in fp16: held to those in fp32, and to their promise that a vision tower's large activations survive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_outputs import vision_outputs
from onnx import TensorProto
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.errors import InputError, UsageError
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.half import WIDE_SCALE
from vtexport.runtime.images import load_image, pixel_values
from vtexport.runtime.pipeline import Pipeline

PROMPT = "What is on the table?"
LARGEST = 65504.0  # float16's largest number


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("half") / "tiny"
    return build(str(tiny_checkpoint), target, keep=[16, 32], precision="fp16").folder


def vision(bundle: Path, plan: str, dialect: str = "modern") -> dict[str, np.ndarray]:
    pipeline = Pipeline.open(bundle, plan, dialect=dialect)
    pixels, _ = pixel_values(load_image(PHOTO), pipeline.bundle.manifest.image)
    return vision_outputs(pipeline, pixels)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    assert np.isfinite(got).all()
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vision_agrees_with_fp32(tiny_bundle: Path, half_bundle: Path, dialect: str) -> None:
    expected, got = vision(tiny_bundle, "prunesid-16"), vision(half_bundle, "prunesid-16", dialect)
    for name in ("features", "scores"):
        assert got[name].dtype == np.float32
        assert relative_error(got[name], expected[name]) < 4e-3


@pytest.mark.parametrize("keep", [16, 32])
def test_kept_tokens_and_answer_are_near_fp32s(
    tiny_bundle: Path, half_bundle: Path, keep: int, record_property: Callable[[str, object], None]
) -> None:
    """Kept tokens may differ where a choice is close, and a different row changes the answer after it."""
    plan = f"prunesid-{keep}"
    whole, half = Pipeline.open(tiny_bundle, plan), Pipeline.open(half_bundle, plan)
    expected, got = whole.encode(PHOTO), half.encode(PHOTO)
    overlap = len(set(expected.keep_indices.tolist()) & set(got.keep_indices.tolist()))
    record_property("kept_in_both", f"{overlap} of {keep}")
    assert len(set(got.keep_indices.tolist())) == keep
    assert overlap >= 0.75 * keep
    assert got.embeddings.dtype == np.float16
    # The same visual tokens for both, so that the language models are compared and not the choices before them.
    expected_ids, got_ids = (p.generate(expected, PROMPT, max_new_tokens=16).token_ids for p in (whole, half))
    same = next((i for i, (a, b) in enumerate(zip(expected_ids, got_ids, strict=False)) if a != b), len(expected_ids))
    record_property("tokens_equal_from_the_start", f"{same} of {len(expected_ids)}")
    assert same >= 4


def test_both_dialects_answer_nearly_alike(half_bundle: Path) -> None:
    modern, classic = (
        Pipeline.open(half_bundle, "prunesid-16", dialect=d).generate(PHOTO, PROMPT, max_new_tokens=16)
        for d in DIALECTS
    )
    assert modern.token_ids[:4] == classic.token_ids[:4]


def test_interfaces(half_bundle: Path) -> None:
    """Towards the image float32, towards the language model the bundle's precision, as the manifest says it."""
    manifest = open_bundle(half_bundle).manifest
    assert manifest.precision == "float16"
    found = {
        (name.split(".")[0], tensor.name.split(".")[0]): tensor.dtype
        for name, graph in manifest.graphs.items()
        for tensor in (*graph.inputs, *graph.outputs)
        if tensor.dtype != "int64"
    }
    wide = {("vision", "pixel_values"), ("vision", "features"), ("vision", "scores")}
    wide |= {("prunesid-16", "features"), ("prunesid-16", "scores"), ("prunesid-32", "features")}
    wide |= {("prunesid-32", "scores")}
    assert {key for key, dtype in found.items() if dtype == "float32"} == wide
    assert set(found.values()) == {"float32", "float16"}


def test_statistics_are_float32(half_bundle: Path) -> None:
    """Softmax, LayerNorm and RMSNorm of every graph, by the types that shape inference finds.

    `Attention` leaves the precision of its softmax to the runtime; that it is good enough is for the tests above.
    """
    bundle = open_bundle(half_bundle)
    seen = set()
    for name, graph in bundle.manifest.graphs.items():
        if "prune" in name:
            continue
        model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path(graph.file)))
        values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        for node in model.graph.node:
            if node.op_type in {"Softmax", "LayerNormalization", "ReduceMean"}:
                assert kinds[node.input[0]] == TensorProto.FLOAT, (name, node.name)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Attention":
                assert "softmax_precision" not in attributes, "TensorRT's parser refuses it"
            if node.op_type == "RMSNormalization":
                assert attributes.get("stash_type", 1) == TensorProto.FLOAT
            seen.add(node.op_type)
    assert {"Softmax", "LayerNormalization", "ReduceMean", "Attention", "RMSNormalization"} <= seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_checkpoints(dtype: torch.dtype, tmp_path: Path) -> None:
    """fp16 weights are copied byte for byte, bf16 ones narrowed; both then agree with the same weights in fp32."""
    folder = save_model(make_model(make_config(), seed=4).to(dtype), tmp_path / "checkpoint")
    half = build(str(folder), tmp_path / "half", keep=16, precision="fp16")
    whole = build(str(folder), tmp_path / "whole", keep=16)
    weights = half.path("onnx/weights/model.safetensors").read_bytes()
    assert (weights == (folder / "model.safetensors").read_bytes()) == (dtype == torch.float16)
    features = [vision(bundle.folder, "prunesid-16")["features"] for bundle in (half, whole)]
    assert relative_error(*features) < 4e-3
    assert Pipeline.open(half.folder).generate(PHOTO, PROMPT, max_new_tokens=4).token_ids


def planted(folder: Path, change: Callable[[Any], None]) -> Path:
    """A checkpoint after `change` has worked on its vision tower."""
    model = make_model(make_config(), seed=2)
    with torch.no_grad():
        change(model.model.vision_tower)
    return save_model(model, folder)


def massive_mlp(tower: Any) -> None:
    """One channel of the stream beyond float16, as trained vision transformers grow them, and a large hidden layer."""
    blocks = tower.encoder.layers
    blocks[1].mlp.fc2.weight[7] *= 20000
    blocks[1].mlp.fc1.weight[3] *= 200


def massive_attention(tower: Any) -> None:
    tower.encoder.layers[0].self_attn.out_proj.weight[5] *= 60000
    tower.encoder.layers[0].self_attn.out_proj.bias[5] = 50000.0


def moderate_stream(tower: Any) -> None:
    """Values that fit and whose squares do not."""
    tower.encoder.layers[0].mlp.fc2.weight[11] *= 2000


@torch.no_grad()
def pytorch_stream(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Every block's output [layers, T, D] of the PyTorch tower in `dtype`, as float64."""
    from transformers import LlavaForConditionalGeneration

    tower = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().model.vision_tower
    bundle_pixels = torch.from_numpy(np.load(folder / "pixels.npy")).to(dtype)
    states = tower(bundle_pixels, output_hidden_states=True).hidden_states
    return torch.stack([state[0] for state in states[:4]]).double()


@pytest.mark.parametrize("change", [massive_mlp, massive_attention, moderate_stream])
def test_large_activations_survive(change: Callable[[Any], None], tmp_path: Path) -> None:
    folder = planted(tmp_path / "checkpoint", change)
    whole = build(str(folder), tmp_path / "whole", keep=16)
    half = build(str(folder), tmp_path / "half", keep=16, precision="fp16")
    np.save(folder / "pixels.npy", pixel_values(load_image(PHOTO), whole.manifest.image)[0])
    stream = pytorch_stream(folder, torch.float32).abs().max()
    if change is moderate_stream:
        assert LARGEST**0.5 < stream < LARGEST
    else:
        assert LARGEST < stream < LARGEST / WIDE_SCALE
        assert not pytorch_stream(folder, torch.float16).isfinite().all(), "a plain fp16 tower must fail on this"
    expected = vision(whole.folder, "prunesid-16")
    for dialect in DIALECTS:
        got = vision(half.folder, "prunesid-16", dialect)
        # channel by channel, or the planted one would hide the others
        scale = np.abs(expected["features"]).max(axis=1, keepdims=True)
        assert np.isfinite(got["features"]).all()
        assert float((np.abs(got["features"] - expected["features"]) / scale).max()) < 0.02
        assert relative_error(got["scores"], expected["scores"]) < 0.02
        Pipeline.open(half.folder, dialect=dialect).encode(PHOTO)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda tower: tower.encoder.layers[1].self_attn.v_proj.weight.mul_(60000), "the vision tower"),
        (lambda tower: tower.encoder.layers[2].mlp.fc2.weight.mul_(60000), "the projector"),
    ],
    ids=["vision", "projector"],
)
def test_what_does_not_survive_is_said(change: Callable[[Any], None], stage: str, tmp_path: Path) -> None:
    folder = planted(tmp_path / "checkpoint", change)
    half = build(str(folder), tmp_path / "half", keep=16, precision="fp16").folder
    with pytest.raises(InputError, match=rf"{stage} gave values beyond the range of float16.*--precision fp32"):
        Pipeline.open(half).encode(PHOTO)
    whole = build(str(folder), tmp_path / "whole", keep=16).folder
    assert np.isfinite(Pipeline.open(whole).encode(PHOTO).embeddings).all()


def test_a_weight_beyond_the_range_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = planted(tmp_path / "checkpoint", lambda tower: tower.encoder.layers[1].mlp.fc2.bias.fill_(70000.0))
    with pytest.raises(InputError, match=r"layers.1.mlp.fc2.bias holds 70000, beyond .*65504; use --precision fp32"):
        build(str(folder), tmp_path / "b", keep=16, precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_another_precision_is_not_added(tiny_checkpoint: Path, bundle_copy: Path) -> None:
    with pytest.raises(UsageError, match="is a bundle in float32, this build is in float16"):
        build(str(tiny_checkpoint), bundle_copy, keep=20, precision="fp16")
