"""The builder of graphs and functions: constants, scopes, outputs, nodes that nothing depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from vtexport.graphs.builder import Builder, GraphWriter, as_constant, live_nodes, scoped
from vtexport.graphs.control_flow import choose, repeat_while
from vtexport.graphs.files import interface, save, to_proto
from vtexport.graphs.weight import Weight


def writer() -> GraphWriter:
    return GraphWriter({}, Path())


def function_model(g: Builder, x: ir.Value, y: ir.Value) -> onnx.ModelProto:
    """A model that calls what `g` holds as the function F of one argument, on a vector of any length."""
    graph = ir.Graph([x], [y], nodes=live_nodes(g.nodes, [y]), opset_imports={"": 20}, name="F")
    outer = writer()
    given = outer.input("given", ["n"], "float32")
    called = outer.op("F", given, domain="own")
    function = ir.Function("own", "F", graph=graph, attributes=[])
    return to_proto(outer.model("test", [given], [(called, "called", ["n"], "float32")], 20, [function]))


def run(model: onnx.ModelProto, **inputs: Any) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return [np.asarray(each) for each in ReferenceEvaluator(model).run(None, inputs)]


def test_an_operator_is_an_attribute() -> None:
    g = Builder()
    x = g.input("x")
    y = g.Mul(g.Add(x, 1.0), 2.0)
    assert isinstance(y, ir.Value)
    assert [node.op_type for node in g.nodes] == ["Constant", "Add", "Constant", "Mul"]
    (found,) = run(function_model(g, x, y), given=np.array([1, 2], np.float32))
    assert found.tolist() == [4, 6]


def test_names_of_operators_begin_with_a_capital() -> None:
    with pytest.raises(AttributeError, match="no 'matmul'; names of operators begin with a capital"):
        _ = Builder().matmul


def test_several_outputs_are_a_tuple() -> None:
    g = Builder()
    values, order = g.TopK(g.input("x"), [2], outputs=2, axis=0)
    assert values.producer() is order.producer() is g.nodes[-1]
    only = g.Split(g.input("y"), outputs=1)
    assert isinstance(only, tuple)
    assert len(only) == 1
    assert [each.name for each in g.op("Split", values, outputs=["a", "b"], num_outputs=2)] == ["a", "b"]


def test_an_input_may_be_left_out() -> None:
    g = Builder()
    g.Clip(g.input("x"), None, 3.0)
    assert g.nodes[-1].inputs[1] is None


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2.5, np.float32),
        (3, np.int64),
        ([1, 2], np.int64),
        (True, np.bool_),
        (np.eye(2), np.float32),
        (np.int32(4), np.int64),
        (np.float16(0.5), np.float16),
        (np.asarray(0.5, ml_dtypes.bfloat16), ml_dtypes.bfloat16),
    ],
)
def test_types_of_constants(value: Any, dtype: Any) -> None:
    made = as_constant(value)
    assert made.dtype == dtype
    assert made.tolist() == np.asarray(value).tolist()


@given(st.lists(st.sampled_from([0, 1, 0.0, 1.0, -0.0, float("nan"), float("inf"), True]), min_size=1, max_size=12))
def test_equal_constants_are_kept_once(values: list[float]) -> None:
    different = {(type(each), np.asarray(each).tobytes()) for each in values}
    g = Builder()
    made = [g.constant(each) for each in values]
    assert len(g.nodes) == len(set(made)) == len(different)
    w = writer()
    assert len({w.constant(each) for each in values}) == len(w.initializers) == len(different)
    assert not w.nodes


def test_constants_of_one_shape_are_not_those_of_another() -> None:
    g = Builder()
    assert g.constant([1]) is not g.constant(1)
    assert g.constant([[1]]) is not g.constant([1])
    assert g.constant(np.array([1])) is g.constant([1])


def test_functions_have_constant_nodes_and_graphs_initializers() -> None:
    g, w = Builder(), writer()
    for each in (g, w):
        each.Add(each.input("x"), 1.0)
    assert [node.op_type for node in g.nodes] == ["Constant", "Add"]
    assert [node.op_type for node in w.nodes] == ["Add"]
    assert list(w.initializers.values()) == [w.nodes[0].inputs[1]]


def test_bodies_read_the_constants_around_them() -> None:
    g = Builder()
    x = g.input("x")
    one = g.constant(1.0)

    def grow(b: Builder, states: Any) -> tuple[ir.Value, list[ir.Value]]:
        assert b.constant(1.0) is one
        own = b.constant(5.0)
        new = b.Add(states[0], b.constant(1.0))
        return b.Less(b.ReduceMax(new, keepdims=0), own), [new]

    (y,) = repeat_while(g, 9, [x], ["float32"], grow)
    assert g.constant(5.0).producer() in g.nodes  # the body's own one ends with it
    (found,) = run(function_model(g, x, g.Add(y, one)), given=np.array([0, 1], np.float32))
    assert found.tolist() == [5, 6]


def test_scopes_name_nodes_and_values() -> None:
    g = Builder()
    x = g.input("x")
    with g.scope("layers.3"):
        with g.scope("mlp"):
            first = g.Relu(x)
            second = g.Relu(first)
            named = g.op("Gemm", x, x, name="gate_proj")
        halves = g.Split(second, outputs=2)
    after = g.Relu(named)
    assert [node.name for node in g.nodes] == [
        "layers.3/mlp/Relu", "layers.3/mlp/Relu_2", "layers.3/mlp/gate_proj", "layers.3/Split", "Relu",
    ]  # fmt: skip
    assert [value.name for value in (first, named, after)] == ["layers.3/mlp/Relu", "layers.3/mlp/gate_proj", "Relu"]
    assert [value.name for value in halves] == ["layers.3/Split.0", "layers.3/Split.1"]


def test_a_scope_ends_with_an_error() -> None:
    g = Builder()
    with pytest.raises(ZeroDivisionError), g.scope("a"):
        _ = 1 / 0
    g.Relu(g.input("x"))
    assert g.nodes[0].name == "Relu"


def test_a_function_may_have_its_scope() -> None:
    @scoped("norm")
    def norm(g: Builder, x: ir.Value, *, power: int) -> ir.Value:
        """The sum of a power."""
        return g.ReduceSum(g.Pow(x, power), keepdims=0)

    g = Builder()
    assert norm(g, g.input("x"), power=2).name == "norm/ReduceSum"
    assert norm.__doc__ == "The sum of a power."


def test_a_prefix_begins_all_names() -> None:
    g = GraphWriter({}, Path(), "vision/")
    with g.scope("head"):
        assert g.Relu(g.input("x", [1], "float32")).name == "vision/head/Relu"


def test_inputs_keep_their_names() -> None:
    g = Builder()
    assert g.input("Relu").name == "Relu"
    assert g.Relu(g.input("x")).name == "Relu_2"


def test_dead_nodes_go() -> None:
    g = Builder()
    x = g.input("x")
    dead = g.Sin(g.Cos(x))
    kept = g.Neg(g.Add(x, 1.0))
    repeat_while(g, 3, [dead], ["float32"], lambda b, s: (b.constant(True), [b.Exp(s[0])]))
    assert [node.op_type for node in live_nodes(g.nodes, [kept])] == ["Constant", "Add", "Neg"]
    assert live_nodes(g.nodes, []) == []


def test_what_only_a_body_reads_stays() -> None:
    g = Builder()
    x = g.input("x")
    outer, deeper = g.Exp(x), g.Sqrt(x)

    def then(b: Builder) -> list[ir.Value]:
        return list(choose(b, b.constant(True), lambda c: [c.Add(deeper, 1.0)], lambda c: [c.Neg(x)], ["float32"]))

    (y,) = choose(g, g.constant(False), then, lambda b: [b.Neg(outer)], ["float32"])
    assert {"Exp", "Sqrt", "If"} <= {node.op_type for node in live_nodes(g.nodes, [y])}


def test_nodes_that_no_output_of_a_body_depends_on_go() -> None:
    g = Builder()
    x = g.input("x")

    def body(b: Builder, states: Any) -> tuple[ir.Value, list[ir.Value]]:
        b.Cos(states[0])
        return b.constant(False), [b.Neg(states[0])]

    repeat_while(g, 2, [x], ["float32"], body)
    inside = [node.op_type for node in g.nodes[-1].attributes["body"].as_graph()]
    assert sorted(inside) == ["Constant", "Identity", "Neg"]


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    weights = {"w": Weight("model.safetensors", 8, 24, (2, 3), "float32")}
    g = GraphWriter(weights, tmp_path)
    x = g.input("x", ["rows", 3], "float32")
    y = g.Gemm(x, g.weight("w"), transB=1)
    assert g.weight("w") is g.weight("w")
    model = g.model("test", [x], [(y, "y", ["rows", 2], "float32")], 20)
    assert interface(model.graph.inputs) == [("x", ["rows", 3], "float32")]
    assert interface(model.graph.outputs) == [("y", ["rows", 2], "float32")]
    save(model, tmp_path / "graph.onnx")
    proto = onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    (stored,) = proto.graph.initializer
    assert {each.key: each.value for each in stored.external_data} == {
        "location": "weights/model.safetensors", "offset": "8", "length": "24",
    }  # fmt: skip
    assert not proto.graph.value_info  # an initializer says its type itself
