"""Loops and branches. Their bodies have builders of their own and may read any value from around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from vtexport.graphs.builder import Builder, describe, live_nodes

Values: TypeAlias = Sequence[ir.Value]
# body(builder, states) -> (condition to go on, new states)
LoopBody: TypeAlias = Callable[[Builder, Values], tuple[ir.Value, Values]]
# body(builder, round, states) -> (new states, this round's result); the round is an int64 scalar from 0
RoundBody: TypeAlias = Callable[[Builder, ir.Value, Values], tuple[Values, ir.Value]]
# branch(builder) -> its values
Branch: TypeAlias = Callable[[Builder], Values]


def repeat_while(
    g: Builder, most: int, states: Values, dtypes: Sequence[str], body: LoopBody, *, name: str = "loop"
) -> tuple[ir.Value, ...]:
    """A do-while Loop of at most `most` rounds: `body` always runs once, its condition is tested afterwards.

    Args:
        g: Where the Loop stands.
        most: Rounds.
        states: Values before the first round.
        dtypes: Their element types, by name.
        body: Writes one round.
        name: Scope of the Loop's nodes.

    Returns:
        The states after the last round.
    """
    with g.scope(name):
        round_ = _Round(g, dtypes)
        go_on, after = body(round_.builder, round_.states)
        return round_.loop(g, most, states, go_on, after, dtypes)


def repeat(
    g: Builder,
    count: int,
    states: Values,
    dtypes: Sequence[str],
    body: RoundBody,
    result_dtype: str,
    *,
    name: str = "loop",
) -> tuple[tuple[ir.Value, ...], ir.Value]:
    """A Loop of exactly `count` rounds; as `repeat_while` beyond that.

    Returns:
        The states after the last round, and every round's result, of `result_dtype`, stacked along a new first axis.
    """
    with g.scope(name):
        round_ = _Round(g, dtypes)
        after, result = body(round_.builder, round_.number, round_.states)
        *last, results = round_.loop(g, count, states, round_.entered, [*after, result], [*dtypes, result_dtype])
        return tuple(last), results


def choose(
    g: Builder,
    condition: ir.Value,
    then: Branch,
    otherwise: Branch,
    dtypes: Sequence[str],
    shapes: Sequence[Sequence[int] | None] | None = None,
) -> tuple[ir.Value, ...]:
    """An If: the values of one of two branches.

    Args:
        g: Where the If stands.
        condition: Bool scalar.
        then, otherwise: Write a branch: at least one node, and values of its own.
        dtypes: Element types of these values, by name.
        shapes: Their shapes where shape inference cannot find them: it does not look out of a branch at values from
            outside.
    """
    bodies = []
    for name, branch in (("then", then), ("otherwise", otherwise)):
        with g.scope(name):
            b = Builder(g)
            bodies.append(_body(b, [], branch(b), dtypes, shapes))
    return g.If(condition, outputs=len(dtypes), then_branch=bodies[0], else_branch=bodies[1])


class _Round:
    """The body of a Loop: its builder, number of the round, whether it was to be entered, and the states before it."""

    def __init__(self, g: Builder, dtypes: Sequence[str]) -> None:
        self.builder = Builder(g)
        self.number, self.entered = self._input("round", [], "int64"), self._input("entered", [], "bool")
        self.states = [self._input("before", None, dtype) for dtype in dtypes]

    def _input(self, name: str, shape: Sequence[int] | None, dtype: str) -> ir.Value:
        value = ir.Value(name=self.builder.unique(name))
        describe(value, shape, dtype)
        return value

    def loop(
        self, g: Builder, most: int, states: Values, go_on: ir.Value, after: Values, dtypes: Sequence[str]
    ) -> tuple[ir.Value, ...]:
        """The Loop node with the finished body."""
        condition = self.builder.Identity(go_on, name="go_on")
        inputs, outputs = [self.number, self.entered, *self.states], [condition, *after]
        body = _body(self.builder, inputs, outputs, ["bool", *dtypes], [[], *([None] * len(after))])
        return g.Loop(most, True, *states, outputs=len(after), body=body)


def _body(
    b: Builder, inputs: Values, outputs: Values, dtypes: Sequence[str], shapes: Sequence[Sequence[int] | None] | None
) -> ir.Graph:
    for value, dtype, shape in zip(outputs, dtypes, shapes or [None] * len(outputs), strict=True):
        describe(value, shape, dtype)
    return ir.Graph(inputs, outputs, nodes=live_nodes(b.nodes, outputs), name=b.unique("body"))
