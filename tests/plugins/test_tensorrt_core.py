"""The TensorRT plugins' core, built without TensorRT: hostile input, and every op against its ONNX node."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_programs
from native_nodes import node_attributes, node_inputs, node_model
from native_ops.calls import first_op
from native_ops.cases import RANDOM_KINDS, random_case
from onnx import AttributeProto, TensorProto

from vtexport.plugins.op_structures import OPS
from vtexport.plugins.structures import make_sizes, make_step_sizes, parameters_of
from vtexport.pruning import Sizes, op_model
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.op import DecoderOp
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK

TEXT_TOKENS = 9  # M of the models' question
ROWS = 700  # S


@pytest.fixture(scope="module")
def programs() -> Path:
    tensorrt_programs.build("core_test", sanitize=True)
    return tensorrt_programs.build("describe", sanitize=True)


class Describe:
    """The program that says what an op is with given attributes."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, op: str, attributes: Mapping[str, Any], shapes: list[list[int]], dtype: int = 0) -> Any:
        lines = [f"op {op}", f"dtype {dtype}"]
        for name, value in attributes.items():
            kind = {int: "int", float: "float", str: "text"}[type(value)]
            lines.append(f"{kind} {name} {value!r}" if kind != "text" else f"text {name} {value}")
        lines += [" ".join(map(str, ["input", *shape])) for shape in shapes]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n".join([*lines, "end", ""]))
        answer = self.process.stdout.readline()
        assert answer, f"the program ended at {lines}"
        return json.loads(answer)


@pytest.fixture(scope="module")
def describe(programs: Path) -> Iterator[Describe]:
    made = Describe(programs / "describe")
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(timeout=60) == 0


def test_any_input_is_taken_or_refused(programs: Path) -> None:
    assert "passed: random_input_is_taken_or_refused" in tensorrt_programs.run(programs / "core_test")


def node_of(model: onnx.ModelProto) -> tuple[str, dict[str, Any]]:
    """Op type and attributes of a one-node model, as TensorRT's parser gives them to a plugin."""
    (node,) = model.graph.node
    kinds = {AttributeProto.INT: lambda a: int(a.i), AttributeProto.FLOAT: lambda a: float(a.f)}
    kinds[AttributeProto.STRING] = lambda a: a.s.decode()
    return node.op_type, {attribute.name: kinds[attribute.type](attribute) for attribute in node.attribute}


def shape_of(value: onnx.ValueInfoProto, known: Mapping[str, int]) -> list[int]:
    return [known[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim]


def compare(describe: Describe, model: onnx.ModelProto, known: Mapping[str, int], features: int) -> Any:
    """Holds the core's tensors to those of the model's node; its answer."""
    op, attributes = node_of(model)
    shapes = [shape_of(value, known) for value in model.graph.input]
    dtype = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 1, TensorProto.BFLOAT16: 2}[features]
    answer = describe(op, attributes, shapes, dtype)
    assert "refused" not in answer, answer
    types = {"features": features, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    for mine, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        assert [each["name"] for each in answer[mine]] == [value.name for value in values]
        assert [types[each["type"]] for each in answer[mine]] == [value.type.tensor_type.elem_type for value in values]
        assert [each["shape"] for each in answer[mine]] == [shape_of(value, known) for value in values]
    assert answer["kernel"] == OPS[op].function
    # What is written into an engine is on the node, and nothing else.
    assert set(answer["fields"]) <= set(attributes)
    return answer


CASES: list[tuple[str, dict[str, Any]]] = [
    ("prunesid", {}),
    ("prunesid", {"variant": "paper"}),
    ("prunesid", {"variant": "qwen", "order": "raster"}),
    ("prunesid", {"groups": 3, "threshold_scale": 1.5, "cls_slot": False, "shares": "proportional"}),
    ("svdprune", {}),
    ("svdprune", {"center": "none", "energy": 0.8}),
    ("svdprune", {"mode": "leverage", "leverage": 0.7, "rank": 5}),
    ("vitcop", {}),
    ("vitcop", {"clusters": True, "clustering": "fixed", "variant": "paper"}),
    ("vitcop", {"clusters": True, "cluster_count": 7, "cutoff": 3.0, "radius": 0.2, "merge": "mean"}),
    ("nuwa", {}),
    ("nuwa", {"variant": "paper", "pillar_quantile": 0.25, "stages": "1"}),
    ("divprune", {}),
    ("divprune", {"space": "vision"}),
    ("cdpruner", {}),
    ("cdpruner", {"relevance": "clip", "theta": 0.95}),
    ("cdpruner", {"relevance": "none", "negate": True}),
]


@pytest.mark.parametrize(("method", "parameters"), CASES, ids=[f"{name}-{given}" for name, given in CASES])
@pytest.mark.parametrize(("grid", "dtype", "batch"), [((24, 24), "float32", 1), ((10, 14), "bfloat16", 3)])
def test_tensors_sizes_and_parameters_are_those_of_the_node(
    describe: Describe, method: str, parameters: dict[str, Any], grid: tuple[int, int], dtype: str, batch: int
) -> None:
    sizes = {"width": 96, "heads": 3, "head_dim": 32, "batch": batch}
    wide = 96 if (method, parameters.get("relevance", "llm")) == ("cdpruner", "llm") else 80
    model = op_model(
        method, tokens=math.prod(grid), grid=grid, keep=40, dtype=dtype, embedding_width=wide, **sizes, **parameters
    )
    features = model.graph.input[0].type.tensor_type.elem_type
    answer = compare(describe, model, {"M": TEXT_TOKENS}, features)
    op = first_op(method, keep=40, grid=grid, **parameters).op
    expected = parameters_of(op.op_type, op)
    assert answer["parameters"] == ("" if expected is None else bytes(expected).hex())
    names = {value.name for value in model.graph.input}
    whole = make_sizes(
        grid=grid if op.needs_grid else (1, math.prod(grid)),
        width=96,
        keep=40,
        batch=batch,
        heads=3 if "keys" in names else 0,
        head_dim=32 if "keys" in names else 0,
        embedding_width=wide if "text_embeds" in names else 0,
        text_tokens=TEXT_TOKENS if "text_embeds" in names else 0,
        dtype=dtype,
    )
    assert answer["sizes"] == bytes(whole).hex()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "op",
    [
        KeyNormTopK(),
        AttentionTopK(),
        TextSimilarityTopK(),
        ClusterMerge(clusters=9),
        ClusterMerge(clusters=1, merge="mean"),
    ],
    ids=str,
)
def test_steps_are_those_of_the_node(describe: Describe, op: DecoderOp, dtype: str) -> None:
    sizes = Sizes(batch=1, grid=(1, 60), keep=17, width=96, heads=6, kv_heads=2, head_dim=32)
    model = model_of_op(op, sizes, dtype=dtype)
    features = model.graph.input[0].type.tensor_type.elem_type
    answer = compare(describe, model, {"S": ROWS, "R": ROWS - 60 + 17}, features)
    expected = parameters_of(op.op_type, op)
    assert answer["parameters"] == ("" if expected is None else bytes(expected).hex())
    names = {value.name for value in model.graph.input}
    heads = (2, 32) if "keys" in names else (0, 0)
    whole = make_step_sizes(
        rows=ROWS,
        width=96,
        visual_count=60,
        keep=17,
        key_heads=heads[0],
        head_dim=heads[1],
        query_heads=6 if "query" in names else 0,
        dtype=dtype,
    )
    assert answer["sizes"] == bytes(whole).hex()


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random_calls_come_through_their_nodes(describe: Describe, kind: str) -> None:
    """From C structures to a node's attributes and back: the same sizes and parameters, to the last bit."""
    for seed in range(6):
        call = random_case(seed, kind).call
        onnx.checker.check_model(node_model(call))
        shapes = [list(value.shape) for value in node_inputs(call).values()]
        answer = describe(call.op_type, node_attributes(call), shapes, call.sizes.dtype)
        assert answer["parameters"] == ("" if call.parameters is None else bytes(call.parameters).hex()), answer
        sizes = type(call.sizes).from_buffer_copy(bytes.fromhex(answer["sizes"]))
        if not call.is_step and "grid_rows" not in node_attributes(call):  # such ops only go by the number of patches
            assert sizes.grid_rows * sizes.grid_columns == call.sizes.grid_rows * call.sizes.grid_columns
            sizes.grid_rows, sizes.grid_columns = call.sizes.grid_rows, call.sizes.grid_columns
        assert bytes(sizes) == bytes(call.sizes)
        outputs = [(each["name"], each["shape"]) for each in answer["outputs"]]
        wanted = [(each.name, shape_of(each, {})) for each in node_model(call).graph.output]
        assert outputs == wanted


def test_every_native_op_has_a_plugin(describe: Describe) -> None:
    for op in OPS:
        assert "is missing" in describe(op, {}, [])["refused"]


def test_output_rows_follow_where_the_length_is_not_known(describe: Describe) -> None:
    answer = describe("VtxTextSimilarityTopK", {"visual_count": 60, "keep": 17}, [[1, -1, 96], [1]])
    assert [each["shape"] for each in answer["outputs"]] == [[1, -1, 96], [1, -1]]


def test_refusals_say_what_is_wrong(describe: Describe) -> None:
    """The sentences that people see in TensorRT's log."""
    shape = [[1, 576, 96]]
    assert describe("VtxDivPrune", {"keep": 577}, shape)["refused"] == (
        "keep is 577, more than the 576 rows of features"
    )
    assert describe("VtxDivPrune", {"keep": "64"}, shape)["refused"] == (
        "attribute keep is a string; give a whole number from 1 to 3841"
    )
    assert describe("VtxDivPrune", {"keep": 64, "kept": 64}, shape)["refused"] == (
        "there is no attribute kept; those read are keep"
    )
    assert describe("VtxKeyNormTopK", {"visual_count": 60, "keep": 17}, [[1, 59, 96], [1], [1, 59, 2, 32]])[
        "refused"
    ] == ("hidden_states has 59 rows, fewer than visual_count, which is 60")
