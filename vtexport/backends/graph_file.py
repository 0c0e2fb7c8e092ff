"""Nodes and stored tensors of an ONNX file, read without the package onnx, which a device does not have.

The file is a protocol buffer (https://protobuf.dev/programming-guides/encoding/); numbers of fields are those of
onnx.proto. Subgraphs, functions and values other than shapes are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vtexport.errors import BundleError

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Bits of an element by TensorProto.DataType
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}


@dataclass(frozen=True)
class StoredTensor:
    """Shape and bytes of a tensor in a graph or in the weights beside it; `external` where it is beside."""

    shape: tuple[int, ...]
    bytes: int
    external: bool

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass
class Node:
    """One node, with its whole-number attributes."""

    op_type: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphFile:
    """Nodes of a graph in their order, and its stored tensors by name."""

    nodes: list[Node]
    tensors: dict[str, StoredTensor]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors that lie in files beside the graph's."""
        return sum(tensor.bytes for tensor in self.tensors.values() if tensor.external)


def read_graph(path: Path) -> GraphFile:
    """The graph of an ONNX file.

    Raises:
        BundleError: the file cannot be read as one.
    """
    nodes: list[Node] = []
    tensors: dict[str, StoredTensor] = {}
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == _MODEL_GRAPH:
                for inner, part in _fields(_bytes(value)):
                    if inner == _GRAPH_NODE:
                        nodes.append(_node(_bytes(part), tensors))
                    elif inner == _GRAPH_INITIALIZER:
                        name, tensor = _tensor(_bytes(part))
                        tensors[name] = tensor
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is no ONNX graph that can be read; build or copy the bundle again") from error
    return GraphFile(nodes, tensors)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: an integer, or the bytes of what is inside."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            whole, place = _varint(data, place)
            yield key >> 3, whole
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            length, place = _varint(data, place)
        if length is None or place + length > len(data):
            raise ValueError(f"a field of kind {kind} ends behind its message")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message is")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")


def _node(data: memoryview, tensors: dict[str, StoredTensor]) -> Node:
    """A node; a tensor among its attributes, which is a Constant's, is put under the name of its output."""
    node, constant = Node(), None
    for number, value in _fields(data):
        if number == _NODE_INPUT:
            node.inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            node.outputs.append(_text(value))
        elif number == _NODE_OP_TYPE:
            node.op_type = _text(value)
        elif number == _NODE_DOMAIN:
            node.domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            parts = dict(_fields(_bytes(value)))
            if _ATTRIBUTE_INT in parts:
                whole = parts[_ATTRIBUTE_INT]
                node.integers[_text(parts[_ATTRIBUTE_NAME])] = whole if isinstance(whole, int) else 0
            if _ATTRIBUTE_TENSOR in parts:
                constant = _tensor(_bytes(parts[_ATTRIBUTE_TENSOR]))[1]
    if constant is not None and node.op_type == "Constant":
        tensors[node.outputs[0]] = constant
    return node


def _tensor(data: memoryview) -> tuple[str, StoredTensor]:
    """A tensor's name with what is known of it."""
    name, shape, bits, external = "", [], 0, {}
    for number, value in _fields(data):
        if number == _TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            bits = _BITS.get(value, 0)
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL:
            entry = dict(_fields(_bytes(value)))
            external[_text(entry[_ENTRY_KEY])] = _text(entry[_ENTRY_VALUE])
    stored = math.prod(shape) * bits // 8
    return name, StoredTensor(tuple(shape), int(external.get("length", stored)), bool(external))


def _packed(data: memoryview) -> list[int]:
    """Numbers written one behind the other."""
    found, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        found.append(value)
    return found
