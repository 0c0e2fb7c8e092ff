"""Bundles in bf16, for engines. ONNX Runtime computes no bfloat16 on the CPU, so what the graphs compute is held by
their twin in float32: the same nodes, every bfloat16 made float32, weights widened exactly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from test_parity import assert_same_answer
from tiny_llava import PHOTO, make_config, make_model, save_model

from vtexport.backends.record import read_engines
from vtexport.backends.registry import compile_bundle
from vtexport.backends.targets import find_target
from vtexport.build import BuildProgress, build
from vtexport.bundle import manifest as schema
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest_json import encode
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import InputError, UsageError, VtexportError
from vtexport.export.check import check_types
from vtexport.graphs.builder import GraphWriter
from vtexport.runtime.images import load_image, pixel_values
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long

BFLOAT16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(make_config(attention_bias=True), seed=6).to(torch.bfloat16)
    return save_model(model, tmp_path_factory.mktemp("bf16") / "checkpoint")


@pytest.fixture(scope="module")
def bf16_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16") / "tiny"
    return build(str(checkpoint), folder, keep=[16, 32], precision="bf16").folder


def tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph or a function: initializers and the constants that nodes hold, bodies included."""
    yield from getattr(graph, "initializer", [])
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


def widened(path: Path) -> onnx.ModelProto:
    """The float32 twin of a graph in bfloat16."""
    model = onnx.load(path)
    for graph in (model.graph, *model.functions):
        for tensor in tensors(graph):
            if tensor.data_type == BFLOAT16:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BFLOAT16:
                    attribute.i = FLOAT
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    return model


@pytest.fixture(scope="module")
def twin(bf16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with every graph and the embedding in float32, which the pipeline runs."""
    folder = Path(shutil.copytree(bf16_bundle, tmp_path_factory.mktemp("bf16") / "twin"))
    manifest = open_bundle(bf16_bundle).manifest
    for graph in manifest.graphs.values():
        graph.needs.types = ["float32", "int64", "bool"]
        onnx.save(widened(bf16_bundle / graph.file), folder / graph.file)
        for tensor in (*graph.inputs, *graph.outputs):
            tensor.dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
    table = manifest.text.embedding
    bits = np.fromfile(bf16_bundle / table.file, "<u2", int(np.prod(table.shape)), offset=table.offset)
    (bits.astype("<u4") << 16).tofile(folder / "embedding.bin")
    manifest.text.embedding = schema.StoredTensor(file="embedding.bin", offset=0, shape=table.shape, dtype="float32")
    manifest.precision = "float32"
    names = [name for name in (*manifest.files, "embedding.bin") if name != schema.MANIFEST_NAME]
    manifest.files = {
        name: schema.File(bytes=(folder / name).stat().st_size, sha256=hash_file(folder / name)) for name in names
    }
    (folder / schema.MANIFEST_NAME).write_bytes(encode(manifest))
    return folder


@pytest.mark.parametrize("keep", [16, 32])
def test_the_graphs_compute_the_model(checkpoint: Path, twin: Path, keep: int) -> None:
    """Features, kept indices, visual block, logits and tokens of PyTorch in float32 on the same bf16 weights."""
    assert_same_answer(checkpoint, twin, f"prunesid-{keep}", keep)


def test_both_dialects_compute_the_same(twin: Path) -> None:
    answers = [
        Pipeline.open(twin, "prunesid-16", dialect=dialect).generate(PHOTO, "What is this?", max_new_tokens=16)
        for dialect in ("modern", "classic")
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_bf16_checkpoint_is_copied_byte_for_byte(checkpoint: Path, bf16_bundle: Path) -> None:
    weights = (bf16_bundle / "onnx" / "weights" / "model.safetensors").read_bytes()
    assert weights == (checkpoint / "model.safetensors").read_bytes()


def test_vision_in_bfloat16_itself(checkpoint: Path, bf16_bundle: Path) -> None:
    """Run by ONNX's reference, which rounds to bfloat16 as the graph says; near the float32 tower, as PyTorch's is."""
    model = onnx.load(bf16_bundle / "onnx" / "vision.cls_attention.classic.onnx")
    pixels, _ = pixel_values(load_image(PHOTO), open_bundle(bf16_bundle).manifest.image)
    features, scores = ReferenceEvaluator(model).run(None, {"pixel_values": pixels})
    twin = widened(bf16_bundle / "onnx" / "vision.cls_attention.classic.onnx")
    expected, expected_scores = ReferenceEvaluator(twin).run(None, {"pixel_values": pixels})
    assert features.dtype == scores.dtype == np.float32
    error = float(np.abs(features - expected).max() / np.abs(expected).max())
    assert 1e-5 < error < 0.02, "bfloat16 has 8 bits: an exact result would mean that nothing was rounded"
    assert float(np.abs(scores - expected_scores).max() / expected_scores.max()) < 0.02


@pytest.mark.parametrize("dialect", ["modern", "classic"])
def test_the_decoder_in_bfloat16_itself(bf16_bundle: Path, dialect: str) -> None:
    path = bf16_bundle / "onnx" / f"decoder_0.{dialect}.onnx"
    random = np.random.default_rng(1)
    narrow = helper.tensor_dtype_to_np_dtype(BFLOAT16)
    shapes = {t.name: t.shape for t in open_bundle(bf16_bundle).manifest.graphs[f"decoder_0.{dialect}"].inputs}
    sizes: dict[int | str, int] = {"S": 6, "P": 9}
    feeds = {
        name: random.standard_normal([sizes.get(dim, dim) for dim in shape]).astype(np.float32).astype(narrow)
        for name, shape in shapes.items()
    }
    feeds["position_ids"] = np.arange(9, 15)[None]
    (got,) = ReferenceEvaluator(onnx.load(path)).run(["logits"], feeds)
    wide = {name: value.astype(np.float32) for name, value in feeds.items()} | {"position_ids": feeds["position_ids"]}
    (expected,) = ReferenceEvaluator(widened(path)).run(["logits"], wide)
    assert got.dtype == narrow
    error = float(np.abs(got.astype(np.float32) - expected).max() / np.abs(expected).max())
    assert 1e-4 < error < 0.03


def test_interfaces_and_statistics(bf16_bundle: Path) -> None:
    """float32 towards the image, bfloat16 towards the language model; softmax and norms in float32."""
    bundle = open_bundle(bf16_bundle)
    assert bundle.manifest.precision == "bfloat16"
    seen = set()
    for name, graph in bundle.manifest.graphs.items():
        wide = {"pixel_values", "features", "scores"}
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.dtype != "int64":
                assert tensor.dtype == ("float32" if tensor.name in wide else "bfloat16"), (name, tensor.name)
        model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path(graph.file)))
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
        for node in model.graph.node:
            if node.op_type in {"Softmax", "LayerNormalization", "ReduceMean", "Gelu", "Conv"}:
                assert kinds[node.input[0]] == FLOAT, (name, node.name)
            if node.op_type in {"Gemm", "RMSNormalization"}:
                assert kinds[node.output[0]] == BFLOAT16
            if node.op_type == "RMSNormalization":
                assert helper.get_node_attr_value(node, "axis") == -1
                assert not [a for a in node.attribute if a.name == "stash_type" and a.i != FLOAT]
            seen.add(node.op_type)
    assert {"Softmax", "LayerNormalization", "ReduceMean", "Gelu", "Conv", "Gemm", "RMSNormalization"} <= seen


def test_every_graph_becomes_an_engine(bf16_bundle: Path) -> None:
    compile_bundle(open_bundle(bf16_bundle), find_target("rtx"))
    (record,) = read_engines(open_bundle(bf16_bundle))
    assert record.precision == "bfloat16"
    assert set(record.engines) == {
        "vision.cls_attention.modern", "prunesid-16.prune", "prunesid-32.prune", "decoder_0.modern"
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"compute capability 7\.5 has no"):
        compile_bundle(open_bundle(bf16_bundle), find_target("rtx"), ["7.5", "8.9"])


def test_mini_becomes_engines_by_one_command(mini_cache: Path, tmp_path: Path, capsys: Any) -> None:
    """mini's stored weights are float32 and are rounded."""
    given = ["--model", "mini", "--keep", "64", "--target", "rtx", "--cache-dir", str(mini_cache)]
    assert main(["build", *given, "--precision", "bf16", "-o", str(tmp_path / "mini")]) == 0
    shown = capsys.readouterr()
    assert "engines/rtx: 3 engines" in shown.out
    assert "next: vtexport inspect" in shown.out
    assert "5 graphs in bfloat16 passed onnx.checker and a check of their types; they were not loaded" in shown.err
    assert main(["inspect", "--verify", str(tmp_path / "mini")]) == 0
    assert "bfloat16" in capsys.readouterr().out


def test_other_checkpoints_are_rounded_as_pytorch_rounds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = build(str(tiny_checkpoint), tmp_path / "b", keep=16, precision="bf16")
    got = load_file(bundle.path("onnx/weights/model.safetensors"))
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert len(got) == len(stored)
    for expected, tensor in zip(sorted_by_size(stored), sorted_by_size(got), strict=True):
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), expected.to(torch.bfloat16).view(torch.int16))


def sorted_by_size(stored: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """In an order that renaming does not change."""
    return sorted(stored.values(), key=lambda tensor: (tuple(tensor.shape), float(tensor.float().sum())))


@pytest.mark.parametrize("value", [3.4e38, float("nan")])
def test_a_weight_beyond_bfloat16_is_named(value: float, tmp_path: Path) -> None:
    model = make_model(make_config())
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[1].mlp.fc2.bias[3] = value
    folder = save_model(model, tmp_path / "checkpoint")
    said = "NaN or infinite" if np.isnan(value) else r"holds 3.4e\+38, beyond bf16's largest number 3.38953e\+38"
    with pytest.raises(InputError, match=rf"layers.1.mlp.fc2.bias {said}" if not np.isnan(value) else said):
        build(str(folder), tmp_path / "b", keep=16, precision="bf16")


def test_what_cannot_run_it_refuses_it(bf16_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(
        UsageError, match=r"is in bfloat16, which ONNX Runtime \S+ does not .* --precision fp16 or fp32"
    ):
        Pipeline.open(bf16_bundle, "prunesid-16")
    run = ["run", str(bf16_bundle), "--plan", "prunesid-16", "--image", str(PHOTO), "--prompt", "x"]
    assert main(run) == 2
    given = ["--model", str(tiny_checkpoint), "--keep", "16", "--precision", "bf16", "-o", str(tmp_path / "b")]
    capsys.readouterr()
    assert main(["build", *given]) == 2
    assert (
        "target cpu takes fp32, fp16, not bf16; give --target rtx, or leave --precision out" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
    assert main(["export", *given]) == 0, "graphs alone are for whatever takes them"


def test_the_check_of_types_sees_what_onnx_runtime_would(bf16_bundle: Path) -> None:
    """Conv takes bfloat16 since opset 22 only, and both operands of Gemm must be of one type."""

    def model(op: str, kinds: tuple[int, ...], shapes: tuple[list[int], ...], opset: int) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(f"x{i}", k, s) for i, (k, s) in enumerate(zip(kinds, shapes, strict=True))
        ]
        out = helper.make_tensor_value_info("y", kinds[0], None)
        graph = helper.make_graph([helper.make_node(op, [v.name for v in values], ["y"])], "g", values, [out])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

    convolution = ("Conv", (BFLOAT16, BFLOAT16), ([1, 3, 4, 4], [2, 3, 2, 2]))
    check_types(model(*convolution, 22))
    with pytest.raises(onnx.shape_inference.InferenceError, match=r"Conv.*unsupported type: tensor\(bfloat16\)"):
        check_types(model(*convolution, 20))
    check_types(model("Gemm", (BFLOAT16, BFLOAT16), ([2, 3], [3, 2]), 20))
    with pytest.raises(onnx.shape_inference.InferenceError, match=r"Gemm.*tensor\(float\)"):
        check_types(model("Gemm", (BFLOAT16, FLOAT), ([2, 3], [3, 2]), 20))


def test_the_build_ends_where_a_type_is_wrong(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of the exporter, planted: the patch embedding left in bfloat16 in opset 20."""
    plain = GraphWriter.op

    def narrow(g: GraphWriter, op_type: str, *inputs: Any, **options: Any) -> Any:
        if op_type != "Conv":
            return plain(g, op_type, *inputs, **options)
        narrowed = [g.cast(x, "float32", "bfloat16") for x in inputs]
        return g.cast(plain(g, op_type, *narrowed, **options), "bfloat16", "float32")

    monkeypatch.setattr(GraphWriter, "op", narrow)
    with pytest.raises(VtexportError, match=r"vision.cls_attention.classic.onnx was exported wrongly.*Conv"):
        build(str(checkpoint), tmp_path / "b", keep=16, precision="bf16", report=BuildProgress())
