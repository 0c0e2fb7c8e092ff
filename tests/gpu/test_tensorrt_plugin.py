"""The TensorRT plugins on an NVIDIA GPU: graphs parsed with the library loaded, built, run, and held to the reference.

They skip themselves where there is no GPU, no tensorrt for Python, or no plugin library. VTEXPORT_TENSORRT_PLUGIN
names a library that has been built; without it TENSORRT_INCLUDE_DIR has to name TensorRT's headers, of the installed
version, for one that is built here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_outputs import run_session
from native_nodes import node_inputs, node_model, node_outputs
from native_ops.cases import RANDOM_KINDS, golden_case, golden_names, golden_types, random_case
from native_ops.compare import Case, problems
from tensorrt_engines import TensorRT

from vtexport.backends.onnxruntime.backend import OnnxRuntimeSession
from vtexport.backends.trt.cuda_driver import Device
from vtexport.bundle.reader import open_bundle
from vtexport.errors import MissingDependencyError

ROOT = Path(__file__).parents[2]
SEEDS = 12  # of every kind of random case
GOLDEN = [(name, golden_types(name)[0]) for name in golden_names()]


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("tensorrt is not installed (pip install tensorrt)")
    try:
        found = Device()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.fixture(scope="module")
def library(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("VTEXPORT_TENSORRT_PLUGIN"):
        return Path(named).resolve()
    headers = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("neither VTEXPORT_TENSORRT_PLUGIN nor TENSORRT_INCLUDE_DIR is set")
    if missing := [tool for tool in ("cmake", "nvcc") if shutil.which(tool) is None]:
        pytest.skip(f"there is no {' and no '.join(missing)} here")
    folder = tmp_path_factory.mktemp("native")
    architecture = device.compute_capability.replace(".", "")
    options = [f"-DTENSORRT_INCLUDE_DIR={headers}", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real"]
    subprocess.run(["cmake", "-S", str(ROOT / "plugins"), "-B", str(folder), *options], check=True)
    build = ["cmake", "--build", str(folder), "--target", "vtexport_plugin", "--parallel", str(os.cpu_count() or 1)]
    subprocess.run(build, check=True)
    return folder / "libvtexport_plugin.so"


@pytest.fixture(scope="module")
def tensorrt(library: Path, device: Device) -> TensorRT:
    return TensorRT(library, device)


def wrong(tensorrt: TensorRT, case: Case, folder: Path) -> list[str]:
    """Problems of the plugin's answer to a case, as far as nodes have what is known of it."""
    engine, plugins = tensorrt.build(node_model(case.call).SerializeToString(), folder)
    assert engine is not None, tensorrt.logged
    assert len(plugins) == 1
    got = tensorrt.run(engine, node_inputs(case.call))
    found = {}
    for own, name in node_outputs(case.call).items():
        found[own] = got[name][0] if case.call.is_step else got[name]
    if "merged" in found:
        found["merged"] = found["merged"].view(np.uint8)
    has = {name: value for name, value in case.expected.items() if name in found}
    parts = {name: value for name, value in case.parts.items() if name in found or name == "kept"}
    return problems(dataclasses.replace(case, expected=has, parts=parts), found)


@pytest.mark.parametrize(("name", "dtype"), GOLDEN, ids="-".join)
def test_golden(name: str, dtype: str, tensorrt: TensorRT, tmp_path: Path) -> None:
    assert wrong(tensorrt, golden_case(name, dtype), tmp_path) == []


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random(kind: str, tensorrt: TensorRT, tmp_path: Path) -> None:
    """Batches, all three types of features, odd sizes and parameters come along with the seeds."""
    assert [each for seed in range(SEEDS) for each in wrong(tensorrt, random_case(seed, kind), tmp_path)] == []


def test_one_engine_for_prompts_of_any_length(tensorrt: TensorRT, tmp_path: Path) -> None:
    cases = [random_case(seed, "VtxKeyNormTopK", visual=64, keep=15, width=64) for seed in range(40)]
    first = cases[0].call
    alike = [
        case
        for case in cases
        if case.call.dtype == first.dtype and case.call.inputs["keys"].shape[1:] == first.inputs["keys"].shape[1:]
    ]
    model = node_model(first, rows="S").SerializeToString()
    heads = first.inputs["keys"].shape[1:]
    lengths = (64, 100, 300)
    profile = {
        "hidden_states": tuple((1, rows, 64) for rows in lengths),
        "keys": tuple((1, rows, *heads) for rows in lengths),
    }
    engine, plugins = tensorrt.build(model, tmp_path, profile)  # type: ignore[arg-type]
    assert engine is not None, tensorrt.logged
    assert len(plugins) == 1
    for case in alike:
        got = tensorrt.run(engine, node_inputs(case.call))
        found = {"hidden_states_out": got["hidden_states_out"][0], "out_rows": got["rows"][0]}
        has = {name: value for name, value in case.expected.items() if name in found}
        assert problems(dataclasses.replace(case, expected=has), found) == []


@pytest.mark.parametrize("form", ["with its function", "without its function"])
@pytest.mark.parametrize("plan", ["prunesid-16", "prunesid-32"])
def test_prune_graphs_of_a_bundle(
    plan: str, form: str, tensorrt: TensorRT, tiny_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    """The files as `vtexport build` writes them, projector included, against ONNX Runtime."""
    if form == "with its function" and tensorrt.version < (10, 7):
        pytest.skip("TensorRT before 10.7 prefers a function to a plugin")
    bundle = open_bundle(tiny_bundle)
    graph = f"{plan}.prune" if form == "with its function" else f"{plan}.prune.native"
    path = bundle.path(bundle.manifest.graphs[graph].file)
    engine, plugins = tensorrt.build(path.read_bytes(), path.parent)
    assert engine is not None, tensorrt.logged
    assert len(plugins) == 1
    described = onnx.load(path, load_external_data=False).graph.input
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in described}
    rng = np.random.default_rng(5)
    feeds = {
        "features": rng.standard_normal(shapes["features"]).astype(np.float32),
        "scores": rng.random(shapes["scores"]).astype(np.float32),
    }
    session = OnnxRuntimeSession(bundle.path(bundle.manifest.graphs[f"{plan}.prune"].file), "cpu", None)
    got, expected = tensorrt.run(engine, feeds), run_session(session, feeds)
    assert got["keep_indices"].tolist() == expected["keep_indices"].tolist()
    assert got["visual_positions"].tolist() == expected["visual_positions"].tolist()
    np.testing.assert_allclose(got["image_features"], expected["image_features"], rtol=1e-3, atol=1e-3)


def test_what_a_plugin_refuses_is_in_tensorrts_log(tensorrt: TensorRT, tmp_path: Path) -> None:
    call = random_case(0, "divprune").call
    model = node_model(call)
    keep = next(attribute for attribute in model.graph.node[0].attribute if attribute.name == "keep")
    keep.i = 3000  # more than there are tokens
    engine, _ = tensorrt.build(model.SerializeToString(), tmp_path)
    assert engine is None
    assert any("VtxDivPrune: keep is 3000, more than the" in line for line in tensorrt.logged)
