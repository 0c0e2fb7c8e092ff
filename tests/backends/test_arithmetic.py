"""Counts of operations and bytes, held to counts by hand: of a small model, and of LLaVA-1.5 7B's known sizes."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from vtexport.backends.arithmetic import (
    Work,
    attentions,
    count_stages,
    decoder_work,
    matrices,
    prune_work,
    vision_work,
)
from vtexport.backends.graph_file import GraphFile, Node, StoredTensor, read_graph
from vtexport.backends.targets import find_target
from vtexport.bundle.abilities import choose_graphs
from vtexport.bundle.reader import open_bundle
from vtexport.checkpoint.aliases import ALIASES
from vtexport.checkpoint.model_config import read_model_config
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.files import save
from vtexport.graphs.weight import Weight

# LLaVA-1.5 7B: Vicuna 7B (LLaMA) and CLIP ViT-L/14 at 336 pixels, whose features are those of its last layer but one
LAYERS, WIDTH, INNER, VOCABULARY = 32, 4096, 11008, 32064
BLOCKS, TOWER, TOWER_INNER, ROWS = 23, 1024, 4096, 577
DECODER_LAYER = 4 * WIDTH**2 + 3 * WIDTH * INNER
BLOCK = 4 * TOWER**2 + 2 * TOWER * TOWER_INNER
PATCH_EMBEDDING = TOWER * 3 * 14 * 14


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GraphFile]:
    """The graphs of LLaVA-1.5 7B in float16 by stage and dialect, without a byte of its 14 GB of weights."""
    folder = tmp_path_factory.mktemp("llava")
    config = read_model_config(ALIASES["llava"].folder)
    weights, offset = {}, 0
    for name, shape in config.shapes.items():
        weights[name] = Weight("w.bin", offset, 2 * math.prod(shape), tuple(shape), "float16")
        offset += weights[name].nbytes
    used = {name: weight for name, weight in weights.items() if f"encoder.layers.{BLOCKS}." not in name}
    found = {}
    for name, dialect in DIALECTS.items():
        models = {
            "vision": config.spec.vision.graph(("cls_attention",), used, folder, "float16", dialect),
            "decoder": config.spec.decoder.segment(weights, folder, "float16", 0, LAYERS, dialect),
        }
        for stage, model in models.items():
            save(model, folder / f"{stage}.onnx")
            found[f"{stage}.{name}"] = read_graph(folder / f"{stage}.onnx")
    return found


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_llavas_decoder(llava: dict[str, GraphFile], dialect: str) -> None:
    graph = llava[f"decoder.{dialect}"]
    head = VOCABULARY * WIDTH
    assert sum(matrix.elements for matrix in matrices(graph)) == LAYERS * DECODER_LAYER + head
    assert attentions(graph) == LAYERS
    row = 2 * WIDTH * 2  # keys and values in float16
    prefill = decoder_work(graph, 128, 0, WIDTH, row, VOCABULARY)
    products = 2 * (128 * LAYERS * DECODER_LAYER + head)
    assert prefill.flops == products + 4 * LAYERS * WIDTH * 128 * 129 / 2
    assert prefill.bytes == 2 * (LAYERS * DECODER_LAYER + head) + LAYERS * row * 128
    # A token of 6.6 billion weights: 13.2 GFLOP, and 13.2 GB to read
    decode = decoder_work(graph, 1, 191, WIDTH, row, VOCABULARY)
    assert decode.flops == 2 * (LAYERS * DECODER_LAYER + head) + 4 * LAYERS * WIDTH * 192
    assert decode.flops == pytest.approx(13.31e9, rel=1e-3)
    assert decode.bytes == pytest.approx(13.31e9, rel=2e-3)


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_llavas_vision_tower(llava: dict[str, GraphFile], dialect: str) -> None:
    graph = llava[f"vision.{dialect}"]
    assert sum(matrix.elements for matrix in matrices(graph)) == BLOCKS * BLOCK + PATCH_EMBEDDING
    assert attentions(graph) == BLOCKS
    work = vision_work(graph, [ROWS], TOWER)
    assert work.flops == 2 * ROWS * (BLOCKS * BLOCK + PATCH_EMBEDDING) + 4 * BLOCKS * ROWS**2 * TOWER
    assert work.flops == pytest.approx(366e9, rel=0.01)
    assert work.bytes == 2 * (BLOCKS * BLOCK + PATCH_EMBEDDING)
    two = vision_work(graph, [ROWS, ROWS], TOWER)
    assert two == Work(2 * work.flops, work.bytes), "tiles attend to themselves alone, on the same weights"


def test_a_small_model_by_hand(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest, plan = bundle.manifest, bundle.manifest.plans[0]
    chosen = choose_graphs(manifest, plan, find_target("cpu").abilities)
    files = {name: tiny_bundle / graph.file for name, graph in manifest.graphs.items()}
    stages = count_stages(manifest, plan, chosen, lambda name: read_graph(files[name]), 8, 4)
    decoder, new = manifest.decoder, plan.visual_tokens + 8
    model = onnx.load(files[chosen.decoder[0]], load_external_data=False)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    layers = sum(math.prod(s) for n, s in shapes.items() if n.endswith("proj.weight"))
    head = decoder.vocab_size * decoder.hidden_size
    width = decoder.num_attention_heads * decoder.head_dim
    row = 2 * decoder.num_key_value_heads * decoder.head_dim * 4
    pairs = new * (new + 1) / 2
    assert stages.prefill.flops == 2 * (new * layers + head) + 4 * decoder.num_hidden_layers * width * pairs
    past = new + 2
    assert stages.decode.flops == 2 * (layers + head) + 4 * decoder.num_hidden_layers * width * (past + 1)
    assert stages.decode.bytes == 4 * (layers + head) + decoder.num_hidden_layers * row * (past + 1)
    connector = (
        2
        * plan.visual_tokens
        * (manifest.vision.hidden_size * decoder.hidden_size + decoder.hidden_size * decoder.hidden_size)
    )
    assert stages.prune.flops == connector


def graph_of(*nodes: Node, **tensors: tuple[int, ...]) -> GraphFile:
    stored = {name: StoredTensor(shape, 2 * math.prod(shape), True) for name, shape in tensors.items()}
    return GraphFile(list(nodes), stored)


def test_matrices_before_the_op_take_all_rows_and_those_behind_it_the_kept_ones() -> None:
    first = Node("Gemm", "", ["x", "a", ""], ["y"], {"transB": 1})
    op = Node("VtxDivPrune", "vtexport", ["y"], ["z"])
    last = Node("MatMul", "", ["z", "b"], ["w"])
    graph = graph_of(first, op, last, a=(8, 4), b=(8, 2))
    assert [matrix.columns for matrix in matrices(graph)] == [8, 2]
    assert prune_work(graph, 100, 10) == Work(2 * (100 * 32 + 10 * 16), 2 * (32 + 16))
    assert prune_work(graph_of(first, a=(8, 4)), 100, 10).flops == 2 * 100 * 32


def test_quantised_matrices_count_their_elements_and_their_stored_bytes(tmp_path: Path) -> None:
    weight = helper.make_tensor("q", TensorProto.INT4, [64, 32], [1] * 2048)
    scale = helper.make_tensor("s", TensorProto.FLOAT16, [64, 1], [1.0] * 64)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=1, block_size=32),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=1),
        helper.make_node("MatMul", ["y", "y2"], ["z"]),
        helper.make_node("MatMulNBits", ["z", "b", "t"], ["o"], domain="com.microsoft", K=64, N=16, bits=4),
    ]
    packed = helper.make_tensor("b", TensorProto.UINT8, [16, 2, 16], [0] * 512)
    scales = helper.make_tensor("t", TensorProto.FLOAT16, [32], [1.0] * 32)
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT16, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [], [value], [weight, scale, packed, scales]))
    onnx.save(model, tmp_path / "g.onnx")
    first, second = matrices(read_graph(tmp_path / "g.onnx"))
    assert (first.elements, first.columns, first.bytes) == (64 * 32, 64, 1024 + 128)
    assert (second.elements, second.columns, second.bytes) == (64 * 16, 16, 512 + 64)
