"""A small writer for ONNX graphs on onnx_ir, with weights as external data in the bundle's safetensors files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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


class GraphWriter:
    """Collects nodes and initializers; every method that emits a node returns its output value(s).

    `prefix` begins the nodes' names, where several writers write one graph. Within a `scope` a node is named after its
    place in the model and what it does there (`vision/layers.3/self_attn/q_proj`), elsewhere after its operator.
    """

    def __init__(self, weights: Mapping[str, Weight], folder: Path, prefix: str = ""):
        self._weights = weights
        self._folder = folder
        self._prefix = prefix
        self._scope = ""
        self._taken: Counter[str] = Counter()  # names within scopes
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: str) -> ir.Value:
        """A graph input; give it to `model` in the order wanted."""
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(DTYPES[dtype]))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names nodes of the block `name/...`, behind the scopes around it."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: Sequence[str] | int = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Emits a node of the standard domain; `name` is its own within the scope, that of the operator if left out."""
        count = outputs if isinstance(outputs, int) else len(outputs)
        own = self._node_name(op_type, name)
        names = [f"{own}_{i}" for i in range(count)] if isinstance(outputs, int) else outputs
        values = [ir.Value(name=name) for name in names]
        node = ir.node(op_type, list(inputs), attributes=attributes, outputs=values, name=own)
        self.nodes.append(node)
        return values[0] if count == 1 else values

    def _node_name(self, op_type: str, name: str | None) -> str:
        if not self._scope:
            return f"{self._prefix}{op_type}_{len(self.nodes)}"
        own = f"{self._prefix}{self._scope}{name or op_type}"
        self._taken[own] += 1
        return own if self._taken[own] == 1 else f"{own}_{self._taken[own]}"

    def cast(self, x: ir.Value, source: str, target: str) -> ir.Value:
        """x of the type `source` in `target`; no node where they are the same."""
        return x if source == target else self.op("Cast", x, to=DTYPES[target].value)

    def constant(self, value: Any, name: str | None = None) -> ir.Value:
        """A small tensor kept in the graph itself; equal ones are kept once."""
        array = np.asarray(value)
        name = name or f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tolist()}"
        return self._initializer(name, ir.tensor(array, name=name))

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
    ) -> ir.Model:
        """The finished model; `outputs` are (value, name, shape, dtype)."""
        for value, output_name, shape, dtype in outputs:
            value.name, value.shape, value.type = output_name, ir.Shape(shape), ir.TensorType(DTYPES[dtype])
        graph = ir.Graph(
            list(inputs),
            [value for value, *_ in outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": opset},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="vtexport")


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


def save(model: ir.Model, path: Path) -> None:
    """Writes a graph file, its weights as references to their files.

    Initializers say their own type and shape. onnx_ir describes them a second time among the graph's values, which
    breaks tools that put other tensors in their places and do not look there, such as ONNX Runtime's quantisers.
    """
    proto = ir.to_proto(model)
    stored = {initializer.name for initializer in proto.graph.initializer}
    described = [value for value in proto.graph.value_info if value.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    onnx.save(proto, path)


def interface(values: Sequence[ir.Value]) -> list[tuple[str, list[int | str], str]]:
    """(name, shape, dtype) of a model's inputs or outputs, as the manifest lists them."""
    described = []
    for value in values:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
        described.append((value.name, shape, NAMES[value.dtype]))
    return described
