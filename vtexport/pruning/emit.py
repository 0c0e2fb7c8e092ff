"""A writer of ONNX nodes: `emitter.MatMul(a, b)` adds a MatMul node and returns the name of its output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

# body(emitter, states) -> (condition to go on, new states)
LoopBody = Callable[["Emitter", Sequence[str]], tuple[str, Sequence[str]]]
# body(emitter, round, states) -> (new states, this round's result); the round is an int64 scalar from 0
RoundBody = Callable[["Emitter", str, Sequence[str]], tuple[Sequence[str], str]]
# branch(emitter) -> its values
Branch = Callable[["Emitter"], Sequence[str]]


class Emitter:
    """Collects the nodes of one function or loop body.

    Any capitalised attribute is an ONNX op. Inputs are value names, or Python numbers and NumPy arrays, which become
    Constant nodes: floats as float32, integers as int64. `outputs=2` returns two names.
    """

    def __init__(self, outer: Emitter | None = None) -> None:
        self.nodes: list[NodeProto] = []
        # Names are unique across loop bodies, and a body may read the constants around it.
        self._counter: Iterator[int] = itertools.count() if outer is None else outer._counter
        self._constants: dict[tuple[Any, ...], str] = {} if outer is None else dict(outer._constants)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[:1].isupper():
            raise AttributeError(op)

        def add(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            names = [self._name(op) for _ in range(outputs)]
            sources = [value if isinstance(value, str) else self.constant(value) for value in inputs]
            # Named, because quantisers choose nodes by name, and name what they add after them.
            self.nodes.append(helper.make_node(op, sources, names, name=names[0], **attributes))
            return names[0] if outputs == 1 else tuple(names)

        return add

    def _name(self, hint: str) -> str:
        return f"{hint.lower()}_{next(self._counter)}"

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype.kind in "iu":
            array = array.astype(np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.Constant(value=numpy_helper.from_array(array))
        return self._constants[key]

    def repeat_while(self, most: int, states: Sequence[str], types: Sequence[int], body: LoopBody) -> list[str]:
        """A do-while Loop of at most `most` rounds: `body` always runs once, its condition is tested afterwards.

        Bodies may read outer values by name. `types` are the ONNX element types of `states`.
        """
        inner = Emitter(self)
        before = [self._name("before") for _ in states]
        round_, entered, go_on = self._name("round"), self._name("entered"), self._name("go_on")
        condition, after = body(inner, before)
        inner.nodes.append(helper.make_node("Identity", [condition], [go_on], name=go_on))
        describe = helper.make_tensor_value_info
        graph = helper.make_graph(
            inner.nodes,
            self._name("body"),
            [describe(round_, INT64, []), describe(entered, BOOL, [])]
            + [describe(name, kind, None) for name, kind in zip(before, types, strict=True)],
            [describe(go_on, BOOL, [])] + [describe(name, kind, None) for name, kind in zip(after, types, strict=True)],
        )
        result = self.Loop(most, True, *states, outputs=len(states), body=graph)
        return [result] if len(states) == 1 else list(result)

    def repeat(
        self, count: int, states: Sequence[str], types: Sequence[int], body: RoundBody, result_type: int
    ) -> tuple[list[str], str]:
        """A Loop of exactly `count` rounds: the last states, and every round's result, stacked along a new first axis.

        Bodies may read outer values by name. `types` are the ONNX element types of `states`, `result_type` that of a
        round's result.
        """
        inner = Emitter(self)
        before = [self._name("before") for _ in states]
        round_, entered, go_on = self._name("round"), self._name("entered"), self._name("go_on")
        after, result = body(inner, round_, before)
        inner.nodes.append(helper.make_node("Identity", [entered], [go_on], name=go_on))
        describe = helper.make_tensor_value_info
        kinds = [*types, result_type]
        graph = helper.make_graph(
            inner.nodes,
            self._name("body"),
            [describe(round_, INT64, []), describe(entered, BOOL, [])]
            + [describe(name, kind, None) for name, kind in zip(before, types, strict=True)],
            [describe(go_on, BOOL, [])]
            + [describe(name, kind, None) for name, kind in zip([*after, result], kinds, strict=True)],
        )
        names = self.Loop(count, True, *states, outputs=len(states) + 1, body=graph)
        return list(names[:-1]), str(names[-1])

    def choose(
        self,
        condition: str,
        then: Branch,
        otherwise: Branch,
        types: Sequence[int],
        shapes: Sequence[Sequence[int] | None] | None = None,
    ) -> list[str]:
        """An If: the values of one of two branches, which may read outer values by name.

        `condition` is a bool scalar. A branch emits at least one node and returns names of its own. `types` are the
        ONNX element types of what both return, `shapes` their shapes where shape inference cannot find them: it does
        not look out of a branch at values from outside.
        """
        graphs = []
        for branch in (then, otherwise):
            inner = Emitter(self)
            values = branch(inner)
            outputs = [
                helper.make_tensor_value_info(name, kind, shape)
                for name, kind, shape in zip(values, types, shapes or [None] * len(types), strict=True)
            ]
            graphs.append(helper.make_graph(inner.nodes, self._name("branch"), [], outputs))
        result = self.If(condition, outputs=len(types), then_branch=graphs[0], else_branch=graphs[1])
        return [result] if len(types) == 1 else list(result)

    # Short forms of what selection graphs are full of.

    def total(self, value: str, axis: int, *, keepdims: bool = True) -> str:
        return str(self.ReduceSum(value, [axis], keepdims=int(keepdims)))

    def as_float(self, value: str) -> str:
        return str(self.Cast(value, to=FLOAT))

    def as_int(self, value: str) -> str:
        return str(self.Cast(value, to=INT64))


def live_nodes(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes that `outputs` depend on, in order. ONNX Runtime would keep and run dead Loops."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed |= _reads(node)
            kept.append(node)
    return kept[::-1]


def _reads(node: NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _reads(inner)
    return names
