"""The TensorRT plugin library, with NVIDIA's headers: its interfaces, its symbols, and real plugin registries."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorrt_programs

from vtexport.backends.trt.flavour import TENSORRT_RTX
from vtexport.backends.trt.plugin import environment
from vtexport.pruning import Sizes, op_model
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK

pytestmark = tensorrt_programs.needs_headers

OUTPUTS = {"VtxPruneSID": 2, "VtxSVDPrune": 4, "VtxViTCoP": 3, "VtxNuwa": 3, "VtxDivPrune": 2, "VtxCDPruner": 2}
OUTPUTS |= dict.fromkeys(("VtxClusterMerge", "VtxKeyNormTopK", "VtxAttentionTopK", "VtxTextSimilarityTopK"), 2)


@pytest.fixture(scope="module")
def library() -> Path:
    """libvtexport_plugin.so around kernels that only record their calls."""
    # The target needs the other one, so both are built.
    folder = tensorrt_programs.build("vtexport_plugin_register", sanitize=False)
    return folder / "tensorrt" / "libvtexport_plugin.so"


def test_interfaces_called_as_tensorrt_calls_them() -> None:
    said = tensorrt_programs.run(tensorrt_programs.build("plugin_test", sanitize=True) / "plugin_test")
    for case in ("what_is_serialised_makes_the_same_plugin", "descriptions_of_any_content", "where_sentences_go"):
        assert f"passed: {case}" in said


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm here")
@pytest.mark.parametrize(
    ("name", "exported"),
    [("libvtexport_plugin.so", ["getCreators", "setLoggerFinder"]), ("libvtexport_plugin_register.so", [])],
)
def test_symbols(library: Path, name: str, exported: list[str]) -> None:
    """Nothing of TensorRT or CUDA has to be there to load the libraries, and hardly anything leaves them."""
    path = library.with_name(name)
    listed = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines()]
    assert sorted(name for kind, name in symbols if kind not in "Uw") == exported
    undefined = [name for kind, name in symbols if kind == "U"]
    assert not [name for name in undefined if "nvinfer" in name.lower() or name.startswith(("cu", "vtx", "getPlugin"))]
    # What is left is of the C and C++ libraries, whose symbols have versions.
    assert not [name for name in undefined if "@" not in name]


def attributes() -> dict[str, dict[str, Any]]:
    """By op, all that its ONNX node carries but how TensorRT finds the plugin."""
    sizes = Sizes(batch=1, grid=(1, 60), keep=17, width=96, heads=6, kv_heads=2, head_dim=32)
    steps = ClusterMerge(clusters=9), KeyNormTopK(), AttentionTopK(), TextSimilarityTopK()
    models = [
        op_model("prunesid", tokens=576, width=64, keep=64),
        op_model("svdprune", tokens=576, width=64, keep=64),
        op_model("vitcop", tokens=576, width=64, keep=64, clusters=True),
        op_model("nuwa", tokens=576, width=64, keep=64, variant="paper"),
        op_model("divprune", tokens=576, width=64, keep=64),
        op_model("cdpruner", tokens=576, width=64, keep=64),
        *(model_of_op(op, sizes, dtype="float32") for op in steps),
    ]
    made = {}
    for model in models:
        (node,) = model.graph.node
        values = {a.name: a.s.decode() if a.HasField("s") else a.f if a.HasField("f") else a.i for a in node.attribute}
        made[node.op_type] = values
    return made


def registry(
    module: str, library: Path, given: dict[str, dict[str, Any]], variables: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """The record of a TensorRT's registry of the library, and what was written to stderr."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (pip install {module.replace('_', '-')})")
    script = Path(__file__).parent / "tensorrt" / "registry.py"
    command = [sys.executable, str(script), module, str(library), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_lean_runtimes_registry(library: Path) -> None:
    """TensorRT's own registry, of its runtime without a builder, which works without a GPU."""
    given = attributes()
    answer, _ = registry("tensorrt_lean", library, given)
    assert answer["loaded"]
    assert set(answer["creators"]) == set(OUTPUTS) == set(given)
    for op, (version, fields) in answer["creators"].items():
        assert version == "1"
        # TensorRT's parser warns of every field that a node lacks.
        assert set(fields) <= set(given[op])
    assert answer["created"] == {op: [op, "1", "vtexport", count] for op, count in OUTPUTS.items()}


def test_the_lean_runtimes_registry_with_wrong_attributes(library: Path) -> None:
    answer, stderr = registry("tensorrt_lean", library, {"VtxDivPrune": {"keep": 0}, "VtxNuwa": {"keep": 4.5}})
    assert answer["created"] == {"VtxDivPrune": None, "VtxNuwa": None}
    said = "\n".join([*answer["log"], stderr])
    assert "VtxDivPrune: attribute keep is 0; give a whole number from 1 to 3841" in said
    assert "VtxNuwa: attribute keep is a float" in said


def test_a_library_that_registers_by_being_opened(library: Path) -> None:
    """For polygraphy's --plugins and trtexec's --staticPlugins; only in the TensorRT that it was built for."""
    answer, stderr = registry("tensorrt_lean", library.with_name("libvtexport_plugin_register.so"), {})
    if answer["version"].startswith(f"{tensorrt_programs.major_version()}."):
        assert set(answer["creators"]) == set(OUTPUTS)
    else:
        assert answer["creators"] == {}
        assert f"built for TensorRT {tensorrt_programs.major_version()} and here is" in stderr


def test_tensorrt_rtx_lists_the_plugins_where_it_opens_by_name(library: Path) -> None:
    given = attributes()
    with environment(TENSORRT_RTX) as variables:
        answer, _ = registry("tensorrt_rtx", library, given, variables)
    assert answer["loaded"]
    assert set(answer["creators"]) == set(given)
    assert answer["created"] == {op: [op, "1", "vtexport", count] for op, count in OUTPUTS.items()}


def test_opening_registers_nothing_in_tensorrt_rtx(library: Path) -> None:
    """Its registry has to load the plugins itself, and the sentence says which file."""
    answer, stderr = registry("tensorrt_rtx", library.with_name("libvtexport_plugin_register.so"), {})
    assert answer["creators"] == {}
    assert f"have its plugin registry load {library}" in stderr
