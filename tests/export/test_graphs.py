"""Vision and prune graphs as files: interfaces, one export for many plans, the checks that guard publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from tiny_llava import PHOTO

from vtexport.build import build
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.errors import UsageError, VtexportError
from vtexport.export import graphs
from vtexport.export.check import check_graphs
from vtexport.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def load(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.path(bundle.manifest.graphs[name].file), load_external_data=False)


def test_plans_share_everything_but_the_prune_graph(bundle: Bundle) -> None:
    assert set(bundle.manifest.graphs) == {
        "vision.cls_attention.modern", "vision.cls_attention.classic", "decoder_0.modern", "decoder_0.classic",
        "prunesid-16.prune", "prunesid-16.prune.native", "prunesid-32.prune", "prunesid-32.prune.native",
    }  # fmt: skip
    first, second = (plan.graphs for plan in bundle.manifest.plans)
    assert (first.vision, first.decoder) == (second.vision, second.decoder)
    assert not set(first.prune) & set(second.prune)


def test_variants_stand_in_the_order_in_which_they_are_taken(bundle: Bundle) -> None:
    graphs = bundle.manifest.plans[0].graphs
    assert graphs.vision == ["vision.cls_attention.modern", "vision.cls_attention.classic"]
    assert graphs.prune == ["prunesid-16.prune.native", "prunesid-16.prune"]
    assert graphs.decoder == [["decoder_0.modern", "decoder_0.classic"]]
    variants = {name: graph.variant for name, graph in bundle.manifest.graphs.items()}
    assert {name.rpartition(".")[2] for name in variants if variants[name]} == {"modern", "classic", "native"}
    assert all(name.endswith(f".{variant}") for name, variant in variants.items() if variant)
    assert not variants["prunesid-16.prune"]


def test_needs_are_those_of_the_file(bundle: Bundle) -> None:
    for name, graph in bundle.manifest.graphs.items():
        model = load(bundle, name)
        nodes = [*all_nodes(model.graph.node), *(n for f in model.functions for n in all_nodes(f.node))]
        assert graph.needs.operators == sorted({node.op_type for node in nodes if node.domain in {"", "ai.onnx"}})
        assert graph.needs.native_ops == (["VtxPruneSID"] if graph.variant == "native" else [])
        assert ("Attention" in graph.needs.operators) == (graph.variant == "modern")
        declared = {tensor.dtype for tensor in (*graph.inputs, *graph.outputs)}
        assert declared <= set(graph.needs.types) <= {"float32", "int64", "bool"}


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes with those of the bodies inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g.node)


def test_ir_version_and_opsets(bundle: Bundle) -> None:
    for name in bundle.manifest.graphs:
        model = load(bundle, name)
        assert model.ir_version == 10
        opset = {entry.domain: entry.version for entry in model.opset_import}[""]
        assert opset == bundle.manifest.graphs[name].needs.opset == (23 if name.endswith("modern") else 20)


def test_manifest_describes_the_graphs_as_they_are(bundle: Bundle) -> None:
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}
    for name, graph in bundle.manifest.graphs.items():
        model = load(bundle, name).graph
        for described, values in ((graph.inputs, model.input), (graph.outputs, model.output)):
            found = [
                (
                    v.name,
                    [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
                    kinds[v.type.tensor_type.elem_type],
                )
                for v in values
            ]
            assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in described] == found


def test_prune_graph_holds_one_pruning_node_with_its_function(bundle: Bundle) -> None:
    model = load(bundle, "prunesid-16.prune")
    nodes = [node for node in model.graph.node if node.domain == "vtexport"]
    assert [node.op_type for node in nodes] == ["VtxPruneSID"]
    attributes = {a.name: helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert (attributes["keep"], attributes["plugin_namespace"], attributes["plugin_version"]) == (16, b"vtexport", b"1")
    assert [(function.domain, function.name) for function in model.functions] == [("vtexport", "VtxPruneSID")]


def test_the_prune_graph_for_native_ops_is_the_same_without_the_function(bundle: Bundle) -> None:
    whole, bare = load(bundle, "prunesid-16.prune"), load(bundle, "prunesid-16.prune.native")
    assert list(bare.functions) == []
    del whole.functions[:]
    assert [node.SerializeToString() for node in bare.graph.node] == [n.SerializeToString() for n in whole.graph.node]


def test_graphs_with_and_without_functions_are_emitted_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model, written twice: the op behind the tower, and those inside the language model."""
    emitted: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        emit = getattr(graphs, name)

        def count(*given: Any, **further: Any) -> Any:
            emitted.append(name)
            return emit(*given, **further)

        return count

    for name in ("prune_graph", "prune_llm_graph"):
        monkeypatch.setattr(graphs, name, counted(name))
    built = build(str(tiny_checkpoint), tmp_path / "b", method="nuwa", keep=16)
    (plan,) = built.manifest.plans
    assert plan.steps
    assert emitted == ["prune_graph", *["prune_llm_graph"] * len(plan.steps)]
    for bare, whole in [plan.graphs.prune, *plan.graphs.prune_llm]:
        with_functions, without = load(built, whole), load(built, bare)
        assert with_functions.functions
        del with_functions.functions[:]
        assert without == with_functions


def test_both_dialects_answer_alike(bundle: Bundle) -> None:
    """64 greedy tokens; the classic graphs hold nothing newer than opset 20."""
    modern, classic = (
        Pipeline(bundle, "prunesid-16", dialect=dialect).generate(PHOTO, "What is this?", max_new_tokens=64)
        for dialect in ("modern", "classic")
    )
    assert modern.token_ids == classic.token_ids
    assert modern.keep_indices == classic.keep_indices


def test_vision_keeps_fused_attention(bundle: Bundle) -> None:
    """Three of four blocks feed the features; the CLS row costs one Softmax, not one a block."""
    kinds = [node.op_type for node in load(bundle, "vision.cls_attention.modern").graph.node]
    assert kinds.count("Attention") == 3
    assert kinds.count("Softmax") == 1


def test_vision_without_signals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = build(str(tiny_checkpoint), tmp_path / "b", method="none")
    assert set(bundle.manifest.graphs) == {
        "vision.modern", "vision.classic", "none.prune", "decoder_0.modern", "decoder_0.classic"
    }  # fmt: skip
    assert "Softmax" not in {node.op_type for node in load(bundle, "vision.modern").graph.node}


def test_graphs_name_no_file_of_the_exporting_machine(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs.values():
        data = bundle.path(graph.file).read_bytes()
        assert b".py" not in data
        assert str(Path.home()).encode() not in data


def test_graphs_run_in_stock_onnxruntime_alone(bundle: Bundle) -> None:
    session = InferenceSession(str(bundle.path("onnx/prunesid-16.prune.onnx")))
    random = np.random.default_rng(0)
    features, scores = random.standard_normal((1, 65, 48)), random.random((1, 64))
    block, kept, positions = session.run(
        None, {"features": features.astype(np.float32), "scores": scores.astype(np.float32)}
    )
    assert (block.shape, kept.shape, positions.tolist()) == ((1, 16, 72), (1, 16), [list(range(16))])


def test_other_tools_take_the_graphs(bundle: Bundle) -> None:
    """Polygraphy loads the prune graph, its function included, and agrees with a plain session."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    path = str(bundle.path("onnx/prunesid-16.prune.onnx"))
    random = np.random.default_rng(1)
    feeds = {
        "features": random.standard_normal((1, 65, 48)).astype(np.float32),
        "scores": random.random((1, 64)).astype(np.float32),
    }
    with OnnxrtRunner(SessionFromOnnx(path)) as runner:
        outputs = runner.infer(feeds)
    for value, expected in zip(outputs.values(), InferenceSession(path).run(None, feeds), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_same_checkpoint_same_bytes(tiny_checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    again = build(str(tiny_checkpoint), tmp_path / "b", keep=[16, 32])
    assert again.manifest.files == bundle.manifest.files


@pytest.mark.parametrize(
    ("method", "keep", "options", "message"),
    [
        ("prunesid", None, {}, "needs a budget; give --keep N with N up to 64"),
        ("prunesid", [16, 16], {}, "names a budget twice: 16, 16"),
        ("prunesid", [3], {}, "keep=3 is not allowed for prunesid"),
        ("prunesid", [66], {}, "keep=66 is not allowed for prunesid"),
        ("none", [16], {}, "keep=16"),
        ("prune-sid", [16], {}, "did you mean 'prunesid'"),
        ("prunesid", [16], {"ordr": "raster"}, "did you mean 'order'"),
        ("prunesid", [16], {"order": "random"}, "order='random' is not allowed; give group, raster"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, method: str, keep: Any, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(str(tiny_checkpoint), tmp_path / "b", method=method, keep=keep, options=options)
    assert list(tmp_path.iterdir()) == []


def save(path: Path, **changes: Any) -> Path:
    """A one-node model, valid unless changed."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    node = helper.make_node(changes.get("op", "Relu"), ["x"], ["y"], domain=changes.get("domain", ""))
    model = helper.make_model(
        helper.make_graph([node], "g", [value], [out]),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("d", 1)],
        ir_version=changes.get("ir_version", 10),
        functions=changes.get("functions", []),
    )
    onnx.save(model, path)
    return path


def function(name: str) -> onnx.FunctionProto:
    return helper.make_function(
        "d", name, ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )


def test_checks_pass_a_good_graph(tmp_path: Path) -> None:
    notes: list[str] = []
    check_graphs([save(tmp_path / "a.onnx")], notes.append)
    assert notes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ir_version": 11}, "ir_version is 11"),
        ({"op": "TopK", "domain": "d", "functions": [function("TopK")]}, "function TopK needs a name of its own"),
        ({"op": "VtxNothing", "domain": "d"}, "VtxNothing"),
        ({"op": "Reluu"}, "Reluu"),
    ],
)
def test_checks_stop_a_bad_graph(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VtexportError, match=message):
        check_graphs([save(tmp_path / "a.onnx", **changes)], lambda text: None)


def test_checks_say_when_onnxruntime_is_missing(tmp_path: Path, blocked_import: Any) -> None:
    path = save(tmp_path / "a.onnx")
    blocked_import("onnxruntime")
    notes: list[str] = []
    check_graphs([path], notes.append)
    assert notes == ["ONNX Runtime is not installed, so the graphs were checked by onnx.checker alone"]


def test_graphs_that_an_old_onnxruntime_cannot_load_are_checked_without_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    loaded: list[str] = []
    monkeypatch.setattr("vtexport.export.check._load", lambda runtime, path: loaded.append(path.name))
    graphs = ["vision.cls_attention.modern", "vision.cls_attention.classic", "decoder_0.modern", "prunesid-16.prune"]
    notes: list[str] = []
    check_graphs([bundle.path(bundle.manifest.graphs[name].file) for name in graphs], notes.append)
    assert loaded == ["vision.cls_attention.classic.onnx", "prunesid-16.prune.onnx"]
    assert notes == [
        "2 graphs passed onnx.checker and a check of their types; they were not loaded, because ONNX Runtime 1.22.1 is "
        "too old for them"
    ]
