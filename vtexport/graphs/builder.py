"""The builder of every ONNX graph and function, on onnx_ir: nodes with typed values, constants, scopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
import onnx_ir as ir

from vtexport import dtypes
from vtexport.graphs.weight import Weight

# The newest IR version that TensorRT 10.3, ONNX Runtime 1.23 and everything after them read.
IR_VERSION = 10
# External data is named relative to the graph's own folder; loaders refuse ".." and absolute paths.
WEIGHTS_FOLDER = "weights"
DTYPES = {name: ir.DataType(dtype.onnx) for name, dtype in dtypes.DTYPES.items()}
NAMES = {value: key for key, value in DTYPES.items()}
# Both stand for the operators of ONNX itself
STANDARD_DOMAINS = {"", "ai.onnx"}

Array: TypeAlias = "np.ndarray[Any, Any]"
Number: TypeAlias = "float | np.generic"
# What a node reads: a value, None for an input left out, or a constant
Operand: TypeAlias = "ir.Value | Number | Sequence[Number] | Array | None"
Outputs: TypeAlias = "int | Sequence[str]"
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Operator(Protocol):
    """One ONNX operator as a function: inputs in, its output out; with `outputs` a tuple of so many."""

    @overload
    def __call__(
        self, *inputs: Operand, outputs: None = None, name: str | None = None, **attributes: Any
    ) -> ir.Value: ...

    @overload
    def __call__(
        self, *inputs: Operand, outputs: Outputs, name: str | None = None, **attributes: Any
    ) -> tuple[ir.Value, ...]: ...


class Builder:
    """Collects the nodes of a function, or of the body of a loop or branch.

    Any capitalised attribute is an ONNX operator: `g.MatMul(a, b)` adds a node and returns its output,
    `values, order = g.TopK(x, [8], outputs=2)` one with several. Numbers, lists of them and NumPy arrays among the
    inputs become constants. Nodes and their values are named after the scopes they stand in and what they do there
    (`layers.3/self_attn/q_proj`), by the operator where no name is given.

    Attributes:
        nodes: In the order they were added.
    """

    def __init__(self, outer: Builder | None = None, prefix: str = "") -> None:
        """Begins empty; as a body inside `outer`, whose values and constants it may read, in the same scope.

        `prefix` begins all names.
        """
        self.nodes: list[ir.Node] = []
        self._prefix: str = prefix if outer is None else outer._prefix
        self._scope: str = "" if outer is None else outer._scope
        # Names are unique across bodies: a body's values may not hide those around it.
        self._taken: Counter[str] = Counter() if outer is None else outer._taken
        self._constants: dict[tuple[Any, ...], ir.Value] = {} if outer is None else dict(outer._constants)

    def input(self, name: str, shape: Sequence[int | str] | None = None, dtype: str | None = None) -> ir.Value:
        """An input; functions have them without shape and type."""
        self._taken[name] += 1
        return ir.Value(
            name=name,
            shape=None if shape is None else ir.Shape(shape),
            type=None if dtype is None else ir.TensorType(DTYPES[dtype]),
        )

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names nodes of the block `name/...`, behind the scopes around it."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def __getattr__(self, op_type: str) -> Operator:
        if not op_type[:1].isupper():
            raise AttributeError(f"{type(self).__name__} has no {op_type!r}; names of operators begin with a capital")
        return cast(Operator, partial(self.op, op_type))

    @overload
    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: None = None,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value: ...

    @overload
    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: Outputs,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]: ...

    def op(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: Outputs | None = None,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value | tuple[ir.Value, ...]:
        """Adds a node; `name` is its own within the scope, that of the operator if left out.

        `outputs` is their number or their names, which are taken as they are.
        """
        read = [value if value is None or isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        own = self.unique(name or op_type)
        if outputs is None:
            names = [own]
        else:
            names = [f"{own}.{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        values = [ir.Value(name=each) for each in names]
        self.nodes.append(ir.node(op_type, read, attributes, domain=domain, outputs=values, name=own))
        return values[0] if outputs is None else tuple(values)

    def unique(self, name: str) -> str:
        """`name` within the scope, numbered from its second use on."""
        own = f"{self._prefix}{self._scope}{name}"
        self._taken[own] += 1
        return own if self._taken[own] == 1 else f"{own}_{self._taken[own]}"

    def constant(self, value: Operand, name: str | None = None) -> ir.Value:
        """A tensor kept in the graph itself; equal ones are kept once. Floats are float32, whole numbers int64."""
        array = as_constant(value)
        key = (name, array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._new_constant(array, name)
        return self._constants[key]

    def _new_constant(self, array: Array, name: str | None) -> ir.Value:
        # Not an initializer, which functions cannot have
        return self.op("Constant", name=name, value=ir.AttrTensor("value", ir.Tensor(array)))

    def cast(self, x: ir.Value, source: str, target: str) -> ir.Value:
        """x of the type `source` in `target`; no node where they are the same."""
        return x if source == target else self.op("Cast", x, to=DTYPES[target].value)

    def as_float(self, x: Operand) -> ir.Value:
        """x in float32."""
        return self.op("Cast", x, to=DTYPES["float32"].value)

    def as_int(self, x: Operand) -> ir.Value:
        """x in int64."""
        return self.op("Cast", x, to=DTYPES["int64"].value)

    def total(self, x: Operand, axis: int, *, keepdims: bool = True) -> ir.Value:
        """The sum of x over one axis."""
        return self.op("ReduceSum", x, [axis], keepdims=int(keepdims))


class GraphWriter(Builder):
    """Builder of a whole graph: its constants are initializers, and its weights stay in the bundle's files."""

    def __init__(self, weights: Mapping[str, Weight], folder: Path, prefix: str = "") -> None:
        super().__init__(prefix=prefix)
        self._weights = weights
        self._folder = folder
        self.initializers: dict[str, ir.Value] = {}

    def _new_constant(self, array: Array, name: str | None) -> ir.Value:
        name = name or f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tolist()}"
        return self._initializer(name, ir.Tensor(array, name=name))

    def weight(self, name: str) -> ir.Value:
        """A tensor of the checkpoint, left in its file."""
        return self._initializer(name, external_tensor(self._weights[name], name, self._folder))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.initializers:
            self.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.initializers[name]

    def model(
        self,
        name: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[tuple[ir.Value, str, Sequence[int | str], str]],
        opset: int,
        functions: Sequence[ir.Function] = (),
    ) -> ir.Model:
        """The finished model; `outputs` are (value, name, shape, dtype), `functions` those that its nodes call."""
        for value, output_name, shape, dtype in outputs:
            describe(value, shape, dtype)
            value.name = output_name
        graph = ir.Graph(
            list(inputs),
            [value for value, *_ in outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": opset, **{each.domain: 1 for each in functions}},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="vtexport", functions=functions)


def scoped(name: str) -> Callable[[Callable[Concatenate[Builder, _P], _T]], Callable[Concatenate[Builder, _P], _T]]:
    """A decorator for functions of a builder: what they add stands in the scope `name`."""

    def decorate(write: Callable[Concatenate[Builder, _P], _T]) -> Callable[Concatenate[Builder, _P], _T]:
        @wraps(write)
        def in_scope(g: Builder, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
            with g.scope(name):
                return write(g, *args, **kwargs)

        return in_scope

    return decorate


def as_constant(value: Any) -> Array:
    """A number, numbers or an array as a constant has them: no float64, and no integers but int64."""
    array = np.asarray(value)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def describe(value: ir.Value, shape: Sequence[int | str] | None, dtype: str) -> None:
    """Writes a value's shape and type into the graph, where shape inference cannot find them."""
    value.shape = None if shape is None else ir.Shape(shape)
    value.type = ir.TensorType(DTYPES[dtype])


def live_nodes(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that `outputs` depend on, in order. ONNX Runtime would keep and run dead Loops."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            needed |= _reads(node)
            kept.append(node)
    return kept[::-1]


def _reads(node: ir.Node) -> set[ir.Value]:
    values = {value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            values |= set(body.outputs).union(*map(_reads, body))
    return values


def external_tensor(weight: Weight, name: str, folder: Path) -> ir.ExternalTensor:
    """A tensor whose bytes stay in the bundle's weight file; `folder` is where the graph file will stand."""
    return ir.ExternalTensor(
        weight.file if weight.beside else f"{WEIGHTS_FOLDER}/{weight.file}",
        weight.offset,
        weight.nbytes,
        DTYPES[weight.dtype],
        shape=ir.Shape(weight.shape),
        name=name,
        base_dir=folder,
    )
