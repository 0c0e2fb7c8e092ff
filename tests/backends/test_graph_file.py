"""Reading ONNX files without the package onnx, held to that package."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from vtexport.backends.graph_file import read_graph
from vtexport.bundle.reader import open_bundle
from vtexport.errors import BundleError


def test_every_graph_of_a_bundle_is_read_as_onnx_reads_it(tiny_bundle: Path) -> None:
    for graph in open_bundle(tiny_bundle).manifest.graphs.values():
        path = tiny_bundle / graph.file
        model, read = onnx.load(path, load_external_data=False), read_graph(path)
        assert [(n.op_type, n.domain, n.inputs, n.outputs) for n in read.nodes] == [
            (n.op_type, n.domain, list(n.input), list(n.output)) for n in model.graph.node
        ]
        for mine, node in zip(read.nodes, model.graph.node, strict=True):
            expected = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
            assert mine.integers == {name: value % 2**64 for name, value in expected.items()}
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        assert stored.keys() <= read.tensors.keys()
        for name, tensor in stored.items():
            found = read.tensors[name]
            assert found.shape == tuple(tensor.dims)
            assert found.external == external_data_helper.uses_external_data(tensor)
            item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            assert found.bytes == math.prod(tensor.dims) * item
    assert any(tensor.external for tensor in read.tensors.values())


def test_constants_and_small_types(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((3, 4), np.float16)))
    packed = helper.make_tensor("q", TensorProto.INT4, [8, 2], [1] * 16)
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT16, [3, 4])
    onnx.save(helper.make_model(helper.make_graph([constant], "g", [], [out], [packed])), tmp_path / "g.onnx")
    read = read_graph(tmp_path / "g.onnx")
    assert (read.tensors["c"].shape, read.tensors["c"].bytes) == ((3, 4), 24)
    assert (read.tensors["q"].elements, read.tensors["q"].bytes) == (16, 8)
    assert read.weight_bytes == 0


def test_what_is_no_graph_is_said(tmp_path: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"x.onnx is no ONNX graph that can be read; build or copy the bundle again"):
        read_graph(tmp_path / "x.onnx")
    whole = next((tiny_bundle / "onnx").glob("*.onnx")).read_bytes()
    (tmp_path / "x.onnx").write_bytes(whole[: len(whole) - 7])
    with pytest.raises(BundleError, match=r"x.onnx is no ONNX graph"):
        read_graph(tmp_path / "x.onnx")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(b"\x3a" + bytes([len(data) % 128]) + data)  # field 7, the graph
    with contextlib.suppress(BundleError):
        read_graph(path)
