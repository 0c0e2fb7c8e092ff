"""Float16 and bfloat16 policy of exported graphs: where float32 is used, what is scaled.

The policy, for the vision tower and the projector: residual stream, normalisation, softmax and activation functions are
float32; only the operands of matrix products are float16 or bfloat16. In float16 a product that is added to the stream
is computed from operands scaled by `WIDE_SCALE` and scaled back in float32, so it may be as large as 65504 /
WIDE_SCALE, about 4.2 million. The scale is a power of two and changes no significant digit; what it costs is that
numbers below about 4e-6 are rounded to nothing, where float16 itself would have done so below 6e-8. bfloat16 has the
range of float32 and needs no scale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vtexport.export.graph import DTYPES, GraphWriter

WIDE_SCALE = 2.0**-6
_FLOAT = DTYPES["float32"].value


def wide_scale(dtype: str) -> float:
    """The factor on operands of `dtype` so that their product does not overflow."""
    return WIDE_SCALE if dtype == "float16" else 1.0


def softmax_in_float32(model: ir.Model) -> None:
    """Gives every Softmax of an exported graph float32 statistics.

    Not those inside `Attention`: TensorRT's parser refuses its attribute `softmax_precision`, whatever the value.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Softmax" and node.outputs[0].dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            _widen(graph, node)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Cast to float32 before `node` and back after it."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    assert result.dtype is not None
    wide = ir.node("Cast", [source], attributes={"to": _FLOAT})
    narrow = ir.node("Cast", [result], attributes={"to": result.dtype.value})
    narrow.outputs[0].shape, narrow.outputs[0].type = result.shape, ir.TensorType(result.dtype)
    ir.convenience.replace_all_uses_with(result, narrow.outputs[0])
    narrow.replace_input_with(0, result)
    result.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, wide)
    node.replace_input_with(0, wide.outputs[0])
    graph.insert_after(node, narrow)
