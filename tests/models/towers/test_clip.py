"""The written CLIP tower against transformers' CLIPVisionModel: every signal, configuration, precision and dialect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tiny_llava import make_config
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig
from transformers.activations import ACT2FN

from vtexport.errors import UsageError, VtexportError
from vtexport.graphs.activations import ACTIVATIONS, activation
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.files import save
from vtexport.graphs.weight import Weight
from vtexport.models import parts
from vtexport.models.registry import family_of
from vtexport.pruning.signals import SIGNALS

LLAVA = family_of("llava", "")

SIGNAL_SETS = (
    (),
    ("cls_attention",),
    ("received_attention",),
    ("keys",),
    ("similarity_features",),
    ("cls_attention", "keys"),
    ("received_attention", "keys", "similarity_features"),
)
TINY = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 112, "patch_size": 14, "projection_dim": 48}  # fmt: skip
# What sets them apart, and the feature layer.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], int]] = {
    "LLaVA's": ({}, -2),
    "the last layer's": ({}, -1),
    "the first layer's": ({}, 1),
    "one block": ({"num_hidden_layers": 1}, -1),
    "a remainder of pixels": ({"image_size": 45, "patch_size": 7, "hidden_size": 36, "num_attention_heads": 3}, -2),
    "one patch": ({"image_size": 17, "patch_size": 17}, 2),
    "one head, wide": ({"num_attention_heads": 1, "intermediate_size": 33}, 3),
    "a large epsilon": ({"layer_norm_eps": 0.25}, -2),
    "no epsilon": ({"layer_norm_eps": 0.0}, -2),
    "seven blocks": ({"num_hidden_layers": 7, "hidden_act": "gelu"}, -3),
}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Tower:
    """A seeded tower of transformers, float32 with values that `dtype` has, and its weights in a file in `dtype`."""

    model: CLIPVisionModel
    spec: parts.Tower
    weights: dict[str, Weight]
    folder: Path
    dtype: str

    @property
    def pixels(self) -> np.ndarray:
        size = self.spec.image_size
        pixels = np.random.default_rng(3).standard_normal((1, 3, size, size)).astype(np.float32)
        return pixels.astype(DTYPES[self.dtype]).astype(np.float32)

    def write(self, dialect: str, signals: tuple[str, ...] = ()) -> Path:
        model = self.spec.graph(signals, self.weights, self.folder, self.dtype, DIALECTS[dialect])
        save(model, self.folder / "vision.onnx")
        return self.folder / "vision.onnx"

    @torch.no_grad()
    def expected(self, signals: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Transformers' own hidden states, attention maps and key projections."""
        found = self.model(torch.from_numpy(self.pixels), output_hidden_states=True, output_attentions=True)
        layer, states = self.spec.feature_layer, found.hidden_states
        maps, block = found.attentions[layer - 1], self.model.encoder.layers[layer - 1]
        keys = block.self_attn.k_proj(block.layer_norm1(states[layer - 1]))[:, 1:]
        values = {
            "cls_attention": maps[:, :, 0, 1:].sum(1),
            "received_attention": maps[:, :, 1:, 1:].mean(2).sum(1),
            "keys": keys.unflatten(-1, (self.spec.num_attention_heads, -1)),
            "similarity_features": torch.stack(states[self.spec.similarity_layer :]).mean(0)[:, 1:],
        }
        named = {SIGNALS[name].input: values[name].numpy() for name in signals}
        return {"features": states[layer].numpy(), **named}


def make_tower(folder: Path, dtype: str = "float32", layer: int = -2, seed: int = 0, **settings: Any) -> Tower:
    vision = CLIPVisionConfig(**{**TINY, **settings})
    config = LlavaConfig(vision_config=vision, text_config=make_config().text_config, image_token_index=4)
    config.vision_feature_layer = layer
    spec = LLAVA.model_spec(config, folder).vision
    torch.manual_seed(seed)
    model = CLIPVisionModel(vision).eval()
    model.set_attn_implementation("eager")
    weights: dict[str, Weight] = {}
    (folder / "weights").mkdir()
    with torch.no_grad(), (folder / "weights" / "tower.bin").open("wb") as file:
        for name, value in model.state_dict().items():
            is_scale = "norm" in name and name.endswith("weight")
            value.normal_(float(is_scale), value[0].numel() ** -0.5 if value.ndim > 1 else 0.1)
            stored = value.numpy().astype(DTYPES[dtype])
            value.copy_(torch.from_numpy(stored.astype(np.float32)))
            weights[f"vision_tower.{name}"] = Weight("tower.bin", file.tell(), stored.nbytes, stored.shape, dtype)
            file.write(stored.tobytes())
    return Tower(model, spec, weights, folder, dtype)


def run(path: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pixels}), strict=True))


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Same names in the same order, shapes and float32; errors as a share of each output's largest value."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == np.float32
        assert np.isfinite(found[name]).all()
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_graph_equals_transformers(name: str, dialect: str, tmp_path: Path) -> None:
    settings, layer = CONFIGURATIONS[name]
    tower = make_tower(tmp_path, layer=layer, **settings)
    for signals in SIGNAL_SETS:
        assert_near(run(tower.write(dialect, signals), tower.pixels), tower.expected(signals), 3e-6)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_float16_is_near_float32(seed: int, dialect: str, tmp_path: Path) -> None:
    tower = make_tower(tmp_path, "float16", seed=seed)
    for signals in SIGNAL_SETS:
        assert_near(run(tower.write(dialect, signals), tower.pixels), tower.expected(signals), 4e-3)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_bfloat16_is_near_float32(dialect: str, tmp_path: Path) -> None:
    """Run by ONNX's reference: ONNX Runtime has no bfloat16 on the CPU."""
    tower = make_tower(tmp_path, "bfloat16", image_size=42)
    for signals in SIGNAL_SETS:
        model = onnx.load(tower.write(dialect, signals))
        values = ReferenceEvaluator(model).run(None, {"pixel_values": tower.pixels})
        found = dict(zip((each.name for each in model.graph.output), values, strict=True))
        expected = tower.expected(signals)
        assert_near(found, expected, 0.02)
        assert np.abs(found["features"] - expected["features"]).max() > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_shape_is_inferred(dtype: str, dialect: str, tmp_path: Path) -> None:
    tower = make_tower(tmp_path, dtype)
    model = onnx.load(tower.write(dialect, SIGNAL_SETS[-1]))
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    shaped = {v.name for v in (*inferred.value_info, *inferred.output) if v.type.tensor_type.HasField("shape")}
    assert {out for node in model.graph.node for out in node.output} <= shaped


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_weight_stands_behind_a_transpose(dialect: str, tmp_path: Path) -> None:
    """ONNX Runtime would fold and copy it at every load."""
    model = onnx.load(make_tower(tmp_path).write(dialect, SIGNAL_SETS[-1]), load_external_data=False)
    stored = {initializer.name for initializer in model.graph.initializer}
    moved = [node.name for node in model.graph.node if node.op_type == "Transpose" and stored & set(node.input)]
    assert moved == []
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Attention") == (4 if dialect == "modern" else 0)
    assert not {initializer.name for initializer in model.graph.initializer} & {v.name for v in model.graph.value_info}


def test_nodes_say_their_place(tmp_path: Path) -> None:
    model = onnx.load(make_tower(tmp_path).write("modern", ("cls_attention",)), load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(name.startswith("vision/") for name in names)
    assert {
        "vision/embeddings/patch_embedding", "vision/pre_layrnorm", "vision/layers.0/layer_norm1",
        "vision/layers.2/self_attn/q_proj", "vision/layers.2/self_attn/Attention", "vision/layers.2/self_attn/out_proj",
        "vision/layers.1/layer_norm2", "vision/layers.1/mlp/fc1", "vision/layers.1/mlp/fc2", "vision/signals/Softmax",
    } <= set(names)  # fmt: skip


def test_only_the_blocks_that_are_asked_for_run(tmp_path: Path) -> None:
    tower = make_tower(tmp_path, num_hidden_layers=6, layer=2)
    for signals, blocks in (((), 2), (("keys",), 2), (("similarity_features",), 6)):
        model = onnx.load(tower.write("modern", signals), load_external_data=False)
        assert [node.op_type for node in model.graph.node].count("Attention") == blocks


@pytest.mark.parametrize(
    "name", ["embeddings.patch_embedding.bias", "encoder.layers.1.self_attn.q_norm.weight", "pre_layrnorm.scale"]
)
def test_a_tensor_that_the_graph_leaves_out_stops_the_build(name: str, tmp_path: Path) -> None:
    tower = make_tower(tmp_path)
    tower.weights[f"vision_tower.{name}"] = tower.weights["vision_tower.pre_layrnorm.bias"]
    with pytest.raises(VtexportError, match=f"the vision tower has vision_tower.{name}, which its graph would leave"):
        tower.write("modern")


def test_tensors_behind_the_feature_layer_stop_nothing(tmp_path: Path) -> None:
    tower = make_tower(tmp_path, layer=1)
    tower.weights["vision_tower.encoder.layers.1.more"] = tower.weights["vision_tower.pre_layrnorm.bias"]
    tower.write("modern")
    with pytest.raises(VtexportError, match=r"layers\.1\.more"):
        tower.write("modern", ("similarity_features",))


# Activation functions


def test_every_activation_is_known() -> None:
    """One that a new version of transformers brings, and those that are not written."""
    assert set(ACT2FN) - set(ACTIVATIONS) == {"laplace", "prelu", "sqrtsoftplus", "xielu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_equals_transformers(name: str, tmp_path: Path) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [-100, 100, 0]]).astype(np.float32)
    g = GraphWriter({}, tmp_path)
    given = g.input("x", [len(x)], "float32")
    result = g.op("Add", activation(g, given, ACTIVATIONS[name]), g.constant(np.float32(0)))
    save(g.model("activation", [given], [(result, "y", [len(x)], "float32")], 20), tmp_path / "activation.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "activation.onnx").run(None, {"x": x})
    np.testing.assert_allclose(found, ACT2FN[name](torch.from_numpy(x)).numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_tower_with_it_equals_transformers(name: str, tmp_path: Path) -> None:
    tower = make_tower(tmp_path, hidden_act=name, image_size=42)
    assert_near(run(tower.write("classic"), tower.pixels), tower.expected(()), 3e-6)


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - set(ACTIVATIONS)))
def test_another_activation_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"vision_config.hidden_act = '{name}'.* it takes gelu, "):
        make_tower(tmp_path, hidden_act=name)
