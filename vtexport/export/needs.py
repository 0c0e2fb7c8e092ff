"""Needs of an exported graph: the abilities that a runtime must have to run it, as the manifest states them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vtexport.bundle.manifest import Needs
from vtexport.export.graph import NAMES, STANDARD_DOMAINS
from vtexport.pruning.onnx_op import DOMAIN


def needs_of(model: ir.Model) -> Needs:
    """Needs of a whole model: of its graph, its functions and the bodies inside them."""
    bodies = {(domain, name) for domain, name, *_ in model.functions}
    nodes = list(_nodes(model))
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    types = {value.dtype for value in values} | {kind for node in nodes for kind in _types(node)}
    assert model.ir_version is not None
    return Needs(
        ir_version=model.ir_version,
        opset=model.graph.opset_imports[""],
        operators=sorted({node.op_type for node in nodes if node.domain in STANDARD_DOMAINS}),
        types=sorted(NAMES[kind] for kind in types if kind is not None),  # type: ignore[misc]
        native_ops=sorted(
            {node.op_type for node in nodes if node.domain == DOMAIN and (node.domain, node.op_type) not in bodies}
        ),
    )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _types(node: ir.Node) -> Iterator[ir.DataType]:
    """Element types that a node names: what it casts to, and those of its constants."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor().dtype
    if node.op_type == "Cast":
        yield ir.DataType(node.attributes["to"].as_int())
