"""The precision of softmax inside a decoder layer's attention, in each dialect's spelling, on ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from vtexport.backends.record import Profile
from vtexport.backends.trt import compile as trt_compile
from vtexport.backends.trt.worker import Job
from vtexport.errors import VtexportError
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.dialects import DIALECTS
from vtexport.models.decoders.llama import LlamaDecoder

ROWS = 5000
SPEC = LlamaDecoder(
    num_hidden_layers=1, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=ROWS, inv_freq=np.ones(16), attention_scaling=1.0, intermediate_size=8,
    qkv_bias=False, output_bias=False, mlp_bias=False, windows=(None,),
)  # fmt: skip
WIDTH = SPEC.num_attention_heads * SPEC.head_dim


def attention(dialect: str, folder: Path, dtype: str = "float16") -> Path:
    """q [1, S, H * D], k and v [1, L, H_kv, D], mask [1, 1, S, L] -> o [S, H * D], as a layer has it."""
    g = GraphWriter({}, folder)
    q = g.input("q", [1, "S", WIDTH], dtype)
    k, v = (g.input(name, [1, "L", SPEC.num_key_value_heads, SPEC.head_dim], dtype) for name in "kv")
    mask = g.input("mask", [1, 1, "S", "L"], "bool")
    out = DIALECTS[dialect].attend(g, SPEC, q, k, v, mask, dtype)
    model = g.model("attention", [q, k, v, mask], [(out, "o", ["S", WIDTH], dtype)], DIALECTS[dialect].opset)
    ir.save(model, folder / "attention.onnx")
    return folder / "attention.onnx"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("queries", [1, 3])
def test_a_sum_of_thousands_is_not_float16s(dialect: str, queries: int, tmp_path: Path) -> None:
    """Equal keys and values of 1: the weights are 1 / 5000 each and their sum is 1.

    A sum of exp(0) = 1 in float16 stalls at 2048, where the next number is 2050; the answer would be 5000 / 2048.
    """
    stalled = np.float16(0)
    for _ in range(ROWS):
        stalled += np.float16(1)
    assert stalled == 2048, "what the test is about"
    session = onnxruntime.InferenceSession(attention(dialect, tmp_path), providers=["CPUExecutionProvider"])
    rows = np.ones((1, ROWS, SPEC.num_key_value_heads, SPEC.head_dim), np.float16)
    query = np.ones((1, queries, WIDTH), np.float16)
    (out,) = session.run(None, {"q": query, "k": rows, "v": rows, "mask": np.ones((1, 1, queries, ROWS), bool)})
    assert out.dtype == np.float16
    np.testing.assert_allclose(out.astype(np.float32), 1, rtol=0, atol=2e-3)


def test_asking_for_float32_changes_nothing_in_onnx_runtime(tmp_path: Path) -> None:
    path = attention("modern", tmp_path)
    random = np.random.default_rng(0)
    shapes = {"q": (1, 7, WIDTH), **dict.fromkeys("kv", (1, 300, SPEC.num_key_value_heads, SPEC.head_dim))}
    feeds: dict[str, np.ndarray] = {
        name: random.normal(0, 2, shape).astype(np.float16) for name, shape in shapes.items()
    }
    feeds["mask"] = random.random((1, 1, 7, 300)) < 0.7
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    model = onnx.load(path)
    ask_for_float32(model)
    onnx.save(model, path)
    asked = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    assert asked.tobytes() == plain.tobytes()


def ask_for_float32(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "Attention")
    node.attribute.append(helper.make_attribute("softmax_precision", onnx.TensorProto.FLOAT))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_many_small_weights_beside_a_large_one(dialect: str, tmp_path: Path) -> None:
    """One key at logit 8 and 4999 at 0: the small ones are 63 % of the sum, and in a float16 sum they would be lost.

    exp(8) = 2981; in float16 2981 + 1 rounds to 2980 or 2982 and the sum stalls.
    """
    session = onnxruntime.InferenceSession(attention(dialect, tmp_path), providers=["CPUExecutionProvider"])
    keys = np.zeros((1, ROWS, SPEC.num_key_value_heads, SPEC.head_dim), np.float16)
    keys[0, 0] = 8 / SPEC.head_dim**0.5
    values = np.zeros_like(keys)
    values[0, 1:] = 1
    query = np.ones((1, 1, WIDTH), np.float16)
    (out,) = session.run(None, {"q": query, "k": keys, "v": values, "mask": np.ones((1, 1, 1, ROWS), bool)})
    expected = (ROWS - 1) / (ROWS - 1 + np.exp(8.0))
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=0.01)


def engine_of(path: Path) -> None:
    lengths = {"q": (1, 64, 128), "k": (1, 64, 256), "v": (1, 64, 256)}
    rows = {"q": [WIDTH], **{name: [SPEC.num_key_value_heads, SPEC.head_dim] for name in "kv"}}
    shapes = {name: [[1, length, *rows[name]] for length in given] for name, given in lengths.items()}
    shapes["mask"] = [[1, 1, s, p] for s, p in zip(lengths["q"], lengths["k"], strict=True)]
    profile = Profile(name="any", shapes=shapes)
    engine = str(path.with_suffix(".engine"))
    job = Job(
        module="tensorrt_rtx",
        graph=str(path),
        engine=engine,
        profiles=[profile],
        compute_capabilities=[],
        parent=os.getpid(),
    )
    trt_compile.build_engine(job, "attention")


def test_tensorrt_refuses_to_be_told(tmp_path: Path) -> None:
    """The reason why graphs do not ask for float32 there; where the parser takes it one day, they should."""
    path = attention("modern", tmp_path)
    engine_of(path)
    model = onnx.load(path)
    ask_for_float32(model)
    onnx.save(model, path)
    with pytest.raises(VtexportError, match=r"Setting softmax precision is not supported in TensorRT Attention"):
        engine_of(path)


def test_no_float32_attention_in_tensorrt_rtx(tmp_path: Path) -> None:
    """The reason why target rtx takes no fp32: lengths that vary have no kernel there."""
    path = attention("modern", tmp_path, "float32")
    with pytest.raises(VtexportError, match=r"does not take attention: .*composite_op"):
        engine_of(path)
