"""The TensorRT plugins in NVIDIA's own ONNX parser and builder: TensorRT-RTX makes engines without a GPU.

The library is built around kernels that only record their calls, with NVIDIA's headers; the tests skip where these or
tensorrt_rtx are not there. What an engine's text says is asked of the version that it was seen in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_programs
from onnx import TensorProto, helper

from vtexport.backends.record import PluginLibrary, read_engines
from vtexport.backends.registry import compile_bundle
from vtexport.backends.targets import find_target
from vtexport.backends.trt import flavour, plugin
from vtexport.backends.trt.compile import build_engine
from vtexport.backends.trt.worker import Job
from vtexport.build import build
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.reader import open_bundle
from vtexport.errors import VtexportError
from vtexport.plugins import libraries
from vtexport.plugins.op_structures import OPS
from vtexport.pruning import Sizes, op_model
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK

pytestmark = [
    tensorrt_programs.needs_headers,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"),
]

SCRIPT = Path(__file__).parent / "tensorrt" / "rtx.py"
READABLE = "1.7."  # versions of TensorRT-RTX whose engines hold readable text
WORKSPACE = 4096  # that the recording kernels ask for
TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool"}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("prunesid", {}),
    ("prunesid", {"variant": "qwen", "order": "raster"}),
    ("svdprune", {}),
    ("svdprune", {"mode": "leverage"}),
    ("svdprune", {"center": "none", "energy": 0.8}),
    ("vitcop", {}),
    ("vitcop", {"clusters": True}),
    ("nuwa", {}),
    ("nuwa", {"variant": "paper"}),
    ("divprune", {}),
    ("divprune", {"space": "vision"}),
    ("cdpruner", {}),
    ("cdpruner", {"relevance": "clip", "theta": 0.95}),
    ("cdpruner", {"relevance": "none"}),
]
STEPS = (ClusterMerge(clusters=9), KeyNormTopK(), AttentionTopK(), TextSimilarityTopK())
STEP_SIZES = Sizes(batch=1, grid=(1, 576), keep=128, width=256, heads=4, kv_heads=2, head_dim=64)
DTYPES = ("float32", "float16", "bfloat16")
RANGES = {"M": (1, 16, 512), "S": (580, 640, 4096)}


@pytest.fixture(scope="module")
def library() -> Path:
    """libvtexport_plugin.so around kernels that only record their calls."""
    return tensorrt_programs.build("vtexport_plugin_register", sanitize=False) / "tensorrt" / "libvtexport_plugin.so"


def run_rtx(library: Path, cases: Sequence[Any], folder: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """The answer of rtx.py, in a process with these environment variables."""
    given = folder / "cases.json"
    given.write_text(json.dumps(list(cases)))
    command = [sys.executable, str(SCRIPT), str(library), str(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=dict(variables))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def build_all(library: Path, models: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, dict[str, Any]]:
    """What came of each model, by its name; its engine lies beside it."""
    cases = []
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
        cases.append({"model": str(folder / f"{name}.onnx"), "profiles": profiles(model)})
    with plugin.environment(flavour.TENSORRT_RTX) as variables:
        answer = run_rtx(library, cases, folder, variables)
    assert answer["loaded"], answer["log"]
    return {name: {**each, "version": answer["version"]} for name, each in zip(models, answer["cases"], strict=True)}


def profiles(model: onnx.ModelProto) -> list[dict[str, list[list[int]]]]:
    """One profile, with the ranges of the lengths that vary; none where all are fixed."""
    shapes: dict[str, list[list[int]]] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(dim.dim_param for dim in dims):
            shapes[value.name] = [
                [RANGES[dim.dim_param][place] if dim.dim_param else dim.dim_value for dim in dims] for place in range(3)
            ]
    return [shapes] if shapes else []


def setting_models() -> dict[str, onnx.ModelProto]:
    """One-node models of every setting in every type."""
    made = {}
    for dtype in DTYPES:
        for number, (method, parameters) in enumerate(SETTINGS):
            sizes = {"tokens": 576, "width": 256, "keep": 64, "heads": 4, "head_dim": 64}
            made[f"{number}-{method}-{dtype}"] = op_model(method, dtype=dtype, **sizes, **parameters)
        for step in STEPS:
            made[f"{step.op_type}-{dtype}"] = model_of_op(step, STEP_SIZES, dtype=dtype)
    return made


def interface(model: onnx.ModelProto) -> dict[str, tuple[str, list[int]]]:
    """Outputs by name as the graph declares them, a length that varies as -1."""
    return {
        value.name: (
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            [dim.dim_value if not dim.dim_param else -1 for dim in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.output
    }


def assert_is_plugin(model: onnx.ModelProto, came: dict[str, Any], engine: bytes) -> None:
    """The node is one plugin layer with the graph's own outputs, and the engine holds what the plugin needs."""
    (node,) = model.graph.node
    assert came["parsed"], came["errors"]
    assert came["layers"] == ["PLUGIN_V3"]
    assert {name: (TYPES[kind], shape) for name, (kind, shape) in came["outputs"].items()} == interface(model)
    assert came["built"]
    assert came["errors"] == []
    if not came["version"].startswith(READABLE):
        return
    assert node.op_type.encode() in engine
    assert b"vtexport\0" in engine
    given = {attribute.name for attribute in node.attribute}
    for attribute in OPS[node.op_type].attributes:
        # Serialised with its length in front, the closing zero counted.
        there = struct.pack("<I", len(attribute.name) + 1) + attribute.name.encode() + b"\0" in engine
        assert there == (attribute.is_read and attribute.name in given), attribute.name
    assert re.search(rb'dims=\{ %d \} mem_prop=0 name="Vtx\w+_wksp' % WORKSPACE, engine)


def test_every_setting_is_a_plugin_layer(library: Path, tmp_path: Path) -> None:
    models = setting_models()
    for name, model in setting_models().items():
        del model.functions[:]
        models[f"{name}-alone"] = model
    assert len(models) == 108
    came = build_all(library, models, tmp_path)
    for name, model in models.items():
        engine = (tmp_path / f"{name}.onnx.engine").read_bytes() if came[name]["built"] else b""
        assert_is_plugin(model, came[name], engine)
        if OPS[model.graph.node[0].op_type].is_step and came[name]["version"].startswith(READABLE):
            dropped = STEP_SIZES.tokens - STEP_SIZES.keep
            subtracted = rb'sub=\{ name="[^"]*" output=\{"[^"]*" \} input=\{"[^"]*" "__s\^%di64" \}' % dropped
            assert re.search(subtracted, engine), "R is S less the rows that go"


def test_a_step_with_a_fixed_length(library: Path, tmp_path: Path) -> None:
    """R is a number then: S - visual_count + keep."""
    models = {}
    for step in STEPS:
        model = model_of_op(step, STEP_SIZES, dtype="float16")
        for value in model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param == "S":
                    dim.dim_value = 640
        del model.functions[:]
        models[step.op_type] = model
    for came in build_all(library, models, tmp_path).values():
        assert came["outputs"]["hidden_states_out"] == ["HALF", [1, 640 - 576 + 128, 256]]
        assert came["outputs"]["rows"] == ["INT64", [1, 640 - 576 + 128]]


def altered(method: str, **attributes: Any) -> onnx.ModelProto:
    """A one-node model with other values of its attributes; None takes one away."""
    model = op_model(method, tokens=576, width=64, keep=64, dtype="float16", heads=1, head_dim=64)
    (node,) = model.graph.node
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items() if value is not None)
    return model


def of_type(model: onnx.ModelProto, name: str, kind: int) -> onnx.ModelProto:
    """The model with an input of another type."""
    next(value for value in model.graph.input if value.name == name).type.tensor_type.elem_type = kind
    return model


def test_what_the_plugins_refuse_is_a_parse_error_with_their_sentence(library: Path, tmp_path: Path) -> None:
    cases = [
        (altered("divprune", keep=0), "VtxDivPrune: attribute keep is 0; give a whole number from 1 to 3841"),
        (altered("divprune", keep=577), "VtxDivPrune: keep is 577, more than the 576 rows of features"),
        (altered("divprune", keep=None), "VtxDivPrune: attribute keep is missing"),
        (altered("divprune", keep=64.0), "VtxDivPrune: attribute keep is a float"),
        (altered("svdprune", mode="all"), 'VtxSVDPrune: attribute mode is "all"; give budget, leverage'),
        (altered("svdprune", mode=b"budget\0x"), 'mode is "budget" and a zero byte before its end'),
        (altered("svdprune", mode=b"\x1b[31m\n\xff"), 'VtxSVDPrune: attribute mode is "?[31m??"'),
        (altered("prunesid", threshold_scale=float("nan")), "VtxPruneSID: attribute threshold_scale is nan"),
        (altered("nuwa", grid_rows=20), "VtxNuwa: the grid of 20 x 24 does not have the features' 576 patches"),
        (of_type(altered("divprune"), "features", TensorProto.INT32), "VtxDivPrune: features of int32 cannot be"),
    ]
    models = {str(number): model for number, (model, _) in enumerate(cases)}
    for (_, sentence), came in zip(cases, build_all(library, models, tmp_path).values(), strict=True):
        assert not came["parsed"]
        assert sentence in "\n".join(came["errors"])


def test_ops_without_a_plugin_stay_functions(library: Path, tmp_path: Path) -> None:
    models = {
        name: op_model(name, tokens=576, width=64, keep=64, dtype="float16", heads=1, head_dim=64)
        for name in ("visionzip", "random", "uniform", "pool")
    }
    for name, came in build_all(library, models, tmp_path).items():
        assert came["built"], (name, came["errors"])
        assert "PLUGIN_V3" not in came["layers"]
        assert len(came["layers"]) > 1


def test_the_library_is_refused_where_the_parser_would_end_the_process(library: Path, tmp_path: Path) -> None:
    """It opens libtensorrt_rtx.so at a plugin's node; a copy of the file is another library."""
    file = plugin._versioned(flavour.TENSORRT_RTX)
    if file is None or file.with_name("libtensorrt_rtx.so").exists():
        pytest.skip("libtensorrt_rtx.so lies beside TensorRT-RTX here, so it always opens")
    plain = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    for kind in ("nothing", "a broken link", "a copy"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "a broken link":
            (folder / "libtensorrt_rtx.so").symlink_to(folder / "gone")
        if kind == "a copy":
            shutil.copy(file, folder / "libtensorrt_rtx.so")
        answer = run_rtx(library, [], folder, plain | {"LD_LIBRARY_PATH": str(folder)})
        (folder / "libtensorrt_rtx.so").unlink(missing_ok=True)
        assert not answer["loaded"], kind
        assert "libtensorrt_rtx.so does not open the TensorRT-RTX that is loaded" in "\n".join(answer["log"]), kind


@pytest.fixture
def installed(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library as `vtexport plugins build` leaves it, with kernels for Ampere and Ada alone."""
    folder = tmp_path / "plugins" / f"{platform.machine()}-trt11.1-cu13-sm80+89"
    folder.mkdir(parents=True)
    shutil.copy(library, folder)
    libraries.write_record(folder, {libraries.PLUGIN: "the ops as plugins"})
    monkeypatch.setattr(libraries, "default_folder", lambda: tmp_path / "plugins")
    monkeypatch.delenv(libraries.SWITCH, raising=False)
    return folder / libraries.PLUGIN


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan with plugins behind the tower and inside the language model, and one without."""
    folder = tmp_path_factory.mktemp("half") / "tiny"
    for method in ("vitcop", "visionzip"):
        build(str(tiny_checkpoint), folder, method=method, keep=8, precision="fp16")
    return folder


def test_the_engines_of_a_bundle_name_their_plugins(installed: Path, half_bundle: Path, capsys: Any) -> None:
    said: list[str] = []
    compile_bundle(open_bundle(half_bundle), find_target("rtx"), ["8.6", "8.9"], stage=said.append)
    assert said[0] == f"pruning ops as plugins of {installed}"
    (record,) = read_engines(open_bundle(half_bundle))
    size = installed.stat().st_size
    assert record.plugin_library == PluginLibrary(file=installed.name, bytes=size, sha256=hash_file(installed))
    expected = {
        "vitcop-8.prune": ["VtxViTCoP"],
        "vitcop-8.prune_llm_0": ["VtxClusterMerge"],
        "vitcop-8.prune_llm_1": ["VtxKeyNormTopK"],
    }
    assert {name: engine.plugins for name, engine in record.engines.items() if engine.plugins} == expected
    assert "visionzip-8.prune" in record.engines
    for name, ops in expected.items():
        data = (half_bundle / "engines" / "rtx" / record.engines[name].file).read_bytes()
        assert ops[0].encode() in data


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [
        (["12.0"], r"has no kernels for compute capability 12.0"),
        (["7.5"], r"its kernels begin at compute capability 8.0"),
    ],
)
def test_without_kernels_for_a_capability_the_functions_are_built(
    installed: Path, capabilities: list[str], reason: str
) -> None:
    assert plugin.plugin_for(["8.6", "8.9"]).library == installed
    choice = plugin.plugin_for(["8.9", *capabilities])
    assert choice.library is None
    assert re.search(reason, choice.reason)


def test_a_library_that_does_not_load_is_an_error(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no engine of functions in its place, of which nobody would know."""
    installed.write_bytes(np.random.default_rng(0).bytes(10_000))
    onnx.save(op_model("divprune", tokens=36, width=16, keep=8, dtype="float16"), tmp_path / "g.onnx")
    job = Job(
        module="tensorrt_rtx",
        graph=str(tmp_path / "g.onnx"),
        engine=str(tmp_path / "g.engine"),
        profiles=[],
        compute_capabilities=["SM89"],
        parent=os.getpid(),
        plugins=str(plugin.plugin_for(["8.9"]).library),
    )
    with pytest.raises(
        VtexportError, match=r"the plugin library cannot be loaded: .*VTEXPORT_NATIVE=0 builds the ops'"
    ):
        build_engine(job, "g")
    assert not (tmp_path / "g.engine").exists()
    monkeypatch.setenv(libraries.SWITCH, "0")
    assert plugin.plugin_for(["8.9"]) == libraries.Choice(None, "VTEXPORT_NATIVE is 0")
