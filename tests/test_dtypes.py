"""The table of element types, held to the libraries and files whose names it has; nothing else keeps such a table."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import onnx
import pytest
import safetensors.torch
import torch

import vtexport
from vtexport.checkpoint.safetensors_index import DTYPE_BYTES
from vtexport.dtypes import DTYPES, PRECISIONS, WEIGHT_DTYPES, DType, Precision, TensorType, WeightType

PACKAGE = Path(vtexport.__file__).parent
ROOT = PACKAGE.parent
# Beside the table: every type of the safetensors format, and what the ops and the native libraries are told
WITH_A_TABLE = {"dtypes.py", "checkpoint/safetensors_index.py"}
ALL = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@ALL
def test_onnx_and_numpy(dtype: DType) -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx).name == dtype.name
    assert dtype.numpy.name == ("uint16" if dtype.name == "bfloat16" else dtype.name)
    assert dtype.numpy.byteorder in "=<|"
    assert dtype.bits == 8 * dtype.itemsize


@ALL
def test_torch_and_safetensors(dtype: DType) -> None:
    tensor = torch.zeros(3, dtype=getattr(torch, dtype.name))
    assert tensor.element_size() == dtype.itemsize == DTYPE_BYTES[dtype.safetensors]
    stored = safetensors.torch.save({"a": tensor})
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    assert header["a"]["dtype"] == dtype.safetensors


@ALL
def test_tensorrt(dtype: DType) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert getattr(trt.DataType, dtype.tensorrt).itemsize == dtype.itemsize


def test_the_native_libraries() -> None:
    header = (ROOT / "plugins" / "include" / "vtx_ops.h").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"VTX_((?:B?FLOAT)\d+) = (\d+)", header))
    assert {name: int(number) for name, number in numbers.items()} == {
        name.upper(): dtype.native for name, dtype in DTYPES.items() if dtype.native is not None
    }


def test_the_words_that_types_are_checked_by() -> None:
    assert set(get_args(TensorType)) <= set(DTYPES)
    assert set(get_args(WeightType)) == {name for name, dtype in DTYPES.items() if dtype.precision is not None}
    assert list(get_args(WeightType)) == list(WEIGHT_DTYPES)
    assert list(get_args(Precision)) == list(PRECISIONS)
    assert all(dtype.precision == word for word, dtype in PRECISIONS.items())


def test_the_table_loads_no_library() -> None:
    """The process that builds one engine reads a manifest's words and little else, with the memory that is left."""
    code = (
        "import sys; import vtexport.dtypes, vtexport.backends.trt.worker;"
        "print(sorted({'numpy', 'torch', 'onnx', 'onnx_ir', 'safetensors'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_epsilon_is_pytorchs(name: str) -> None:
    assert DTYPES[name].epsilon == torch.finfo(getattr(torch, name)).eps


def test_there_is_no_other_table() -> None:
    """No module has a dictionary by, or of, the types' names."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                words = {each.value for each in (*node.keys, *node.values) if isinstance(each, ast.Constant)}
                if words & {"bfloat16", "BF16", "bf16"}:
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found <= WITH_A_TABLE
