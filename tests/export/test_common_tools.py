"""A bundle's graphs through tools of others: what comes out loads in ONNX Runtime and answers alike.

docs/tools.md has what was seen of further tools, and the settings that some of them need.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
import onnxruntime as ort
import onnxscript.optimizer
import pytest
from onnx import TensorProto
from onnx_ir.passes import common as passes

from vtexport.export.prune import _positions
from vtexport.graphs.builder import GraphWriter
from vtexport.graphs.files import save

GRAPHS = (
    "vision.cls_attention.modern",
    "vision.cls_attention.classic",
    "prunesid-16.prune",
    "decoder_0.modern",
    "decoder_0.classic",
)
LENGTHS = {"S": 70, "P": 7}
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
NEAR = 1e-5  # of the largest value, where a tool rewrites arithmetic
QUANTISED = 0.1  # the same behind 8-bit weights of a small random model

every_graph = pytest.mark.parametrize("name", GRAPHS)


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs with their weights, where tools may write beside them."""
    return Path(shutil.copytree(tiny_bundle / "onnx", tmp_path_factory.mktemp("tools") / "onnx"))


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Inputs of every graph and what it answers as it is."""
    found = {}
    for name in GRAPHS:
        given = inputs_of(onnx.load(folder / f"{name}.onnx", load_external_data=False))
        found[name] = given, run(folder / f"{name}.onnx", given)
    return found


@pytest.fixture
def check(folder: Path, answers: Any, request: Any) -> Callable[..., Path]:
    """Holds a tool's result, a model or what it wrote into a file, to the graph's own answers."""

    def compare(name: str, result: onnx.ModelProto | Path, tolerance: float = 0.0) -> Path:
        path = result if isinstance(result, Path) else folder / "result.onnx"
        if not isinstance(result, Path):
            onnx.save(result, path)
        given, expected = answers[name]
        found = run(path, given)
        assert set(found) == set(expected)
        for output, value in expected.items():
            assert found[output].dtype == value.dtype
            if value.dtype.kind == "i" or not tolerance:
                np.testing.assert_array_equal(found[output], value, err_msg=output)
            else:
                assert np.isfinite(found[output]).all()
                error = np.abs(found[output] - value).max() / np.abs(value).max()
                assert error <= tolerance, output
        return path

    return compare


def inputs_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng, given = np.random.default_rng(0), {}
    for value in model.graph.input:
        shape = [LENGTHS.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            given[value.name] = LENGTHS["P"] + np.arange(shape[1])[None]
        elif value.name == "scores":
            given[value.name] = rng.random(shape, np.float32)
        else:
            given[value.name] = rng.standard_normal(shape).astype(np.float32)
    return given


def run(path: Path, given: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    session = open_session(path, **options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def open_session(path: Path, level: str | None = None, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if level is not None:
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def loaded(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / f"{name}.onnx")


def functions(model: onnx.ModelProto | Path) -> list[str]:
    model = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    return [function.name for function in model.functions]


@every_graph
def test_what_tools_expect_of_a_graph(folder: Path, name: str) -> None:
    """Nodes with names of their own, nothing described twice, and a shape for every value after inference."""
    model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    described = [value.name for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)]
    assert len(set(described)) == len(described)
    assert not {initializer.name for initializer in model.graph.initializer} & set(described)
    constant = {initializer.name for initializer in model.graph.initializer}
    constant |= {out for node in model.graph.node if node.op_type == "Constant" for out in node.output}
    assert not constant & {output.name for output in model.graph.output}, "optimisers may take a constant output away"
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    shaped = {v.name for v in (*inferred.value_info, *inferred.output) if v.type.tensor_type.HasField("shape")}
    assert {out for node in model.graph.node for out in node.output} <= shaped


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_positions_are_an_output_of_their_own(folder: Path, positions: str) -> None:
    """An alias of another output, or a constant, is taken away by some optimisers."""
    g = GraphWriter({}, folder)
    given = g.input("x", [1, 4], "int64")
    kept = g.op("Add", given, g.constant(np.array([[1]])))
    places = _positions(g, positions, kept, 4)
    outputs = [(kept, "keep_indices", [1, 4], "int64"), (places, "visual_positions", [1, 4], "int64")]
    model = g.model("positions", [given], outputs, 20)
    for one in (passes.IdentityEliminationPass(), passes.LiftConstantsToInitializersPass()):
        model = one(model).model
    onnxscript.optimizer.optimize(model)
    save(model, folder / "positions.onnx")
    found = run(folder / "positions.onnx", {"x": np.array([[4, 7, 9, 2]])})
    assert found["keep_indices"].tolist() == [[5, 8, 10, 3]]
    assert found["visual_positions"].tolist() == [[5, 8, 10, 3] if positions == "original" else [0, 1, 2, 3]]


@every_graph
def test_checker_and_shape_inference(folder: Path, check: Any, name: str) -> None:
    path, result = folder / f"{name}.onnx", folder / "inferred.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    onnx.shape_inference.infer_shapes_path(str(path), str(result), check_type=True, strict_mode=True, data_prop=True)
    assert functions(check(name, result)) == functions(path)


@every_graph
def test_saved_anew(folder: Path, check: Any, name: str) -> None:
    check(name, loaded(folder, name))
    own = folder / "own.onnx"
    onnx.save(loaded(folder, name), own, save_as_external_data=True, location="own.data", size_threshold=256)
    check(name, own)
    (folder / "own.data").unlink()  # onnx would append to it


@every_graph
def test_inlined_and_in_later_opsets(folder: Path, check: Any, name: str) -> None:
    """The version converter drops functions, so they are inlined first; it can go up, not down."""
    flat = onnx.inliner.inline_local_functions(loaded(folder, name))
    assert not flat.functions
    check(name, flat)
    check(name, onnx.version_converter.convert_version(flat, 23 if name.endswith("modern") else 22))


@every_graph
@pytest.mark.parametrize("level", LEVELS)
def test_offline_optimisation_of_onnxruntime(folder: Path, check: Any, name: str, level: str) -> None:
    result = folder / f"optimised.{level}.onnx"
    open_session(folder / f"{name}.onnx", level, result)
    check(name, result, NEAR)


@every_graph
@pytest.mark.parametrize(("kind", "level"), [("bert", 0), ("clip", 0), ("bert", 1)])
def test_transformers_optimiser_of_onnxruntime(folder: Path, check: Any, name: str, kind: str, level: int) -> None:
    from onnxruntime.transformers import optimizer

    settings = {"model_type": kind, "opt_level": level, "num_heads": 0, "hidden_size": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        check(name, optimizer.optimize_model(str(folder / f"{name}.onnx"), **settings).model, NEAR)


def test_classic_graphs_have_the_norm_that_optimisers_know(folder: Path) -> None:
    from onnxruntime.transformers import optimizer

    optimised = optimizer.optimize_model(str(folder / "decoder_0.classic.onnx"), model_type="bert", opt_level=0)
    kinds = [node.op_type for node in optimised.model.graph.node]
    assert kinds.count("SimplifiedLayerNormalization") + kinds.count("SkipSimplifiedLayerNormalization") == 7


@every_graph
def test_dynamic_quantisation(folder: Path, check: Any, name: str) -> None:
    """By default it takes Attention of opset 23 for another op of that name."""
    from onnxruntime.quantization import quantize_dynamic

    result = folder / "quantised.onnx"
    quantize_dynamic(folder / f"{name}.onnx", result, op_types_to_quantize=["MatMul", "Gemm"], reduce_range=True)
    check(name, result, QUANTISED)
    kinds = {node.op_type for node in onnx.load(result, load_external_data=False).graph.node}
    assert "MatMulInteger" in kinds or name.startswith("vision")
    assert functions(result) == functions(folder / f"{name}.onnx")


@every_graph
def test_quantisation_behind_its_own_preparation(folder: Path, check: Any, name: str) -> None:
    """Preparation folds the vision tower's transposed weights; it looks for weights beside a file of its own, and its
    symbolic inference does not know Attention of opset 23."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole, prepared, result = (folder / f"{step}.onnx" for step in ("whole", "prepared", "quantised"))
    onnx.save(loaded(folder, name), whole)
    is_prune = name.endswith("prune")  # nothing of the op is to be quantised, so it may stay a function
    quant_pre_process(whole, prepared, skip_symbolic_shape=True, skip_optimization=is_prune)
    check(name, prepared, NEAR)
    quantize_dynamic(prepared, result, op_types_to_quantize=["MatMul", "Gemm"], reduce_range=True)
    check(name, result, QUANTISED)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(result).graph.node}


@pytest.mark.parametrize("name", [name for name in GRAPHS if not name.endswith("modern")])
def test_symbolic_shape_inference_of_onnxruntime(folder: Path, check: Any, name: str) -> None:
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    check(name, SymbolicShapeInference.infer_shapes(loaded(folder, name), auto_merge=True))


@every_graph
def test_onnxscript_and_onnx_ir(folder: Path, check: Any, name: str) -> None:
    model = ir.load(folder / f"{name}.onnx")
    onnxscript.optimizer.optimize(model)
    ir.save(model, folder / "script.onnx")
    check(name, folder / "script.onnx", NEAR)
    model = ir.load(folder / f"{name}.onnx")
    for one in (
        passes.InlinePass(),
        passes.LiftConstantsToInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
        passes.ShapeInferencePass(),
    ):
        model = one(model).model
    ir.save(model, folder / "passes.onnx")
    check(name, folder / "passes.onnx", NEAR)


@every_graph
def test_extraction_and_prefixes(folder: Path, check: Any, answers: Any, name: str) -> None:
    path, result = folder / f"{name}.onnx", folder / "extracted.onnx"
    given, expected = answers[name]
    onnx.utils.extract_model(str(path), str(result), list(given), list(expected))
    assert functions(check(name, result)) == functions(path)
    renamed = onnx.compose.add_prefix(loaded(folder, name), "own/")
    onnx.checker.check_model(renamed)
    onnx.save(renamed, folder / "renamed.onnx")
    found = run(folder / "renamed.onnx", {f"own/{key}": value for key, value in given.items()})
    for output, value in expected.items():
        np.testing.assert_array_equal(found[f"own/{output}"], value)


def test_graphs_put_together(folder: Path, answers: Any) -> None:
    vision, prune = loaded(folder, "vision.cls_attention.classic"), loaded(folder, "prunesid-16.prune")
    pairs = [("features", "features"), ("scores", "scores")]
    vision.opset_import.append(onnx.helper.make_opsetid("vtexport", 1))
    merged = onnx.compose.merge_models(vision, prune, pairs, prefix1="vision/", prefix2="prune/")
    onnx.checker.check_model(merged, full_check=True)
    onnx.save(merged, folder / "merged.onnx")
    given, tower = answers["vision.cls_attention.classic"]
    expected = run(folder / "prunesid-16.prune.onnx", tower)
    found = run(folder / "merged.onnx", {f"vision/{name}": value for name, value in given.items()})
    for output, value in expected.items():
        np.testing.assert_array_equal(found[f"prune/{output}"], value)


@every_graph
def test_polygraphy_shows_every_node(folder: Path, name: str) -> None:
    from polygraphy.tools import main

    path, shown = folder / f"{name}.onnx", io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert not main(["inspect", "model", str(path), "--show", "layers", "attrs"])
    for node in onnx.load(path, load_external_data=False).graph.node:
        assert f"| {node.name} [Op: {node.op_type}]" in shown.getvalue()
