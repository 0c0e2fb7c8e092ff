"""Loops and branches: what they compute in ONNX Runtime and the reference evaluator, and the names in their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession

from vtexport.graphs.builder import Builder, GraphWriter
from vtexport.graphs.control_flow import choose, repeat, repeat_while
from vtexport.graphs.files import to_proto


def begin() -> tuple[GraphWriter, ir.Value]:
    g = GraphWriter({}, Path())
    return g, g.input("x", [3], "float32")


def finish(g: GraphWriter, x: ir.Value, *outputs: tuple[ir.Value, str]) -> onnx.ModelProto:
    """The model; each output has a type, and any shape of one axis."""
    described = [(value, f"y{i}", [f"n{i}"], dtype) for i, (value, dtype) in enumerate(outputs)]
    return to_proto(g.model("test", [x], described, 20))


def run(model: onnx.ModelProto, x: Sequence[float]) -> list[list[float]]:
    """The outputs, the same in both."""
    onnx.checker.check_model(model, full_check=True)
    inputs = {"x": np.asarray(x, np.float32)}
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [each.tolist() for each in session.run(None, inputs)]
    assert [np.asarray(each).tolist() for each in ReferenceEvaluator(model).run(None, inputs)] == found
    return found


def doubling(most: int, limit: float) -> onnx.ModelProto:
    """x doubled until its largest number reaches `limit`, with the rounds that took."""
    g, x = begin()
    factor = g.Add(x, 0.0)  # a value from around the body

    def body(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        value, rounds = states
        value = b.Add(value, b.Mul(factor, b.Div(value, factor)))
        return b.Less(b.ReduceMax(value, keepdims=0), limit), [value, b.Add(rounds, 1)]

    value, rounds = repeat_while(g, most, [x, g.constant([0])], ["float32", "int64"], body, name="doubling")
    return finish(g, x, (value, "float32"), (rounds, "int64"))


@pytest.mark.parametrize(
    ("most", "limit", "rounds"),
    [(9, 20.0, 3), (2, 20.0, 2), (9, 0.0, 1)],  # by the condition, by the limit of rounds, at least one
)
def test_repeat_while(most: int, limit: float, rounds: int) -> None:
    assert run(doubling(most, limit), [1, 2, 4]) == [[1 * 2**rounds, 2 * 2**rounds, 4 * 2**rounds], [rounds]]


def test_repeat_stacks_the_results_of_all_rounds() -> None:
    g, x = begin()

    def body(b: Builder, number: ir.Value, states: Sequence[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        (total,) = states
        new = b.Add(total, b.Gather(x, number))
        return [new], new  # [1]; of scalars the reference evaluator stacks something else

    (total,), results = repeat(g, 3, [g.constant([0.0])], ["float32"], body, "float32")
    model = finish(g, x, (total, "float32"), (g.Squeeze(results, [1]), "float32"))
    assert run(model, [1, 10, 100]) == [[111], [1, 11, 111]]


def test_a_loop_without_states() -> None:
    g, x = begin()
    states, results = repeat(g, 3, [], [], lambda b, number, _: ([], b.Mul(b.Gather(x, number), [2.0])), "float32")
    assert states == ()
    assert run(finish(g, x, (g.Squeeze(results, [1]), "float32")), [1, 2, 3]) == [[2, 4, 6]]


def test_choose() -> None:
    g, x = begin()
    positive = g.Greater(g.ReduceMin(x, keepdims=0), 0.0)
    first, second = choose(
        g,
        positive,
        lambda b: [b.Sqrt(x), b.Mul(x, 2.0)],
        lambda b: [b.Neg(x), b.Mul(x, 3.0)],
        ["float32", "float32"],
        [(3,), None],
    )
    model = finish(g, x, (first, "float32"), (second, "float32"))
    assert run(model, [1, 4, 9]) == [[1, 2, 3], [2, 8, 18]]
    assert run(model, [-1, 4, 9]) == [[1, -4, -9], [-3, 12, 27]]


def nested() -> onnx.ModelProto:
    """A branch in a loop in a loop, each reading x and the states around it."""
    g, x = begin()

    def outer(b: Builder, states: Sequence[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        (value,) = states

        def inner(c: Builder, number: ir.Value, inside: Sequence[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
            is_first = c.Equal(number, 0)
            (add,) = choose(c, is_first, lambda d: [d.Add(value, x)], lambda d: [d.Sub(inside[0], 1.0)], ["float32"])
            return [add], c.ReduceMax(add, keepdims=0)

        (last,), _ = repeat(b, 2, [value], ["float32"], inner, "float32")
        return b.Less(b.ReduceMax(last, keepdims=0), 10.0), [last]

    with g.scope("part"):
        (y,) = repeat_while(g, 50, [x], ["float32"], outer)
    return finish(g, x, (y, "float32"))


def test_bodies_in_bodies() -> None:
    value = np.array([1, 2, 4], np.float32)
    start = value.copy()
    while True:
        value = value + start - 1
        if value.max() >= 10:
            break
    assert run(nested(), [1, 2, 4]) == [value.tolist()]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def test_names_say_where_and_are_unique_across_bodies() -> None:
    every = list(graphs(nested().graph))
    assert len(every) == 5
    nodes = [node.name for graph in every for node in graph.node]
    values = [value.name for graph in every for value in graph.input]
    values += [name for graph in every for node in graph.node for name in node.output]
    for names in (nodes, values, [graph.name for graph in every]):
        assert len(set(names)) == len(names)
    assert {name for name in nodes if "loop" in name} == set(nodes)
    assert any(name.startswith("part/loop/loop/otherwise/Sub") for name in nodes)


def test_as_many_types_as_states() -> None:
    g, x = begin()
    with pytest.raises(ValueError, match="zip"):
        repeat_while(g, 1, [x], ["float32"], lambda b, s: (b.constant(True), [s[0], s[0]]))
