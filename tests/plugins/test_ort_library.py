"""The library for ONNX Runtime: it takes the place of the function bodies and keeps the same tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from native_onnx import model_of
from native_ops.calls import Call, as_dtype, encoder_call, step_call, widened
from native_ops.cases import RANDOM_KINDS, random_case

from vtexport.pruning import op_model
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK

PRUNESID: dict[str, Any] = {"tokens": 25, "width": 16, "keep": 8}
SEEDS = 5


def session(model: onnx.ModelProto, library: Path | None, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(rng: np.random.Generator, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random float32 inputs of a model without dynamic sizes."""
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in model.graph.input}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def without_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Only the library can run it."""
    model = copy.deepcopy(model)
    del model.functions[:]
    return model


def run(model: onnx.ModelProto, call: Call, library: Path | None) -> dict[str, np.ndarray]:
    """Outputs by name; bfloat16 as its bits."""
    found, values = session(model, library), {}
    for each in model.graph.input:
        array = call.inputs[each.name]
        array = array[None] if call.is_step and each.name != "visual_start" else array
        kind = each.type.tensor_type.elem_type
        make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
        values[each.name] = make(np.ascontiguousarray(array), kind) if kind == onnx.TensorProto.BFLOAT16 else (
            ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))  # fmt: skip
    names = [each.name for each in found.get_outputs()]
    outputs = dict(zip(names, found.run_with_ort_values(names, values), strict=True))
    return {name: each.numpy() for name, each in outputs.items() if "bfloat16" not in each.data_type()}


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_the_same_tokens_as_the_function(kind: str, native_library: Path) -> None:
    """In all three types of features; the function has no bfloat16 operators in ONNX Runtime for some ops."""
    types, compared = set(), 0
    for seed in range(SEEDS):
        case = random_case(seed, kind)
        call = case.call
        model = model_of(call)
        native = run(without_function(model), call, native_library)
        overridden = run(model, call, native_library)
        key, expected = ("rows", case.expected["out_rows"][None]) if call.is_step else (
            "keep_indices", case.expected["keep_indices"])  # fmt: skip
        for name in native:
            assert native[name].tobytes() == overridden[name].tobytes(), "the library was not taken"
        for image in np.flatnonzero(case.sure):
            np.testing.assert_array_equal(native[key][image], expected[image])
        if call.dtype != "bfloat16":
            body = run(model, call, None)
            assert {name: (each.shape, each.dtype) for name, each in body.items()} == {
                name: (each.shape, each.dtype) for name, each in native.items()
            }
            for image in np.flatnonzero(case.sure):
                np.testing.assert_array_equal(native[key][image], body[key][image])
                compared += 1
        types.add(call.dtype)
    assert len(types) > 1
    assert compared


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_of_the_session_change_nothing(threads: int, native_library: Path) -> None:
    case = random_case(0, "prunesid")
    model = without_function(model_of(case.call))
    inputs = {
        name: widened(each, case.call.dtype) if name == "features" else each for name, each in case.call.inputs.items()
    }
    if case.call.dtype != "float32":
        inputs["features"] = as_dtype(inputs["features"], case.call.dtype)
    alone = session(model, native_library, 1).run(None, inputs)
    for found, expected in zip(session(model, native_library, threads).run(None, inputs), alone, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_a_grid_that_is_no_square(native_library: Path) -> None:
    rng = np.random.default_rng(2)
    inputs = {
        "features": rng.standard_normal((1, 70, 24)),
        "scores": rng.random((1, 70)),
        "similarity_features": rng.standard_normal((1, 70, 24)),
    }
    call = encoder_call("nuwa", {name: each.astype(np.float32) for name, each in inputs.items()}, keep=20, grid=(7, 10))
    model = model_of(call)
    native, body = run(without_function(model), call, native_library), run(model, call, None)
    np.testing.assert_array_equal(native["keep_indices"], body["keep_indices"])
    np.testing.assert_allclose(native["kept_features"], body["kept_features"], atol=1e-5)
    del model.graph.node[0].attribute[[each.name for each in model.graph.node[0].attribute].index("grid_rows")]
    with pytest.raises(Exception, match="of the attributes grid_rows and grid_columns one is missing; give both"):
        run(without_function(model), call, native_library)


def changed(model: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    """Another value of an attribute, of any type; None takes it away."""
    model = without_function(model)
    kept = [each for each in model.graph.node[0].attribute if each.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    if value is not None:
        model.graph.node[0].attribute.append(onnx.helper.make_attribute(name, value))
    return model


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("keep", 2**40, "attribute keep is 1099511627776; give a whole number from 4 to 3841"),
        ("keep", -1, "attribute keep is -1; give a whole number from 4 to 3841"),
        ("keep", 27, "keep is 27, more than the 26 rows of features"),
        ("keep", "8", "attribute keep is a string; give a whole number from 4 to 3841"),
        ("keep", 8.0, "attribute keep is a float; give a whole number from 4 to 3841"),
        ("groups", None, "attribute groups is missing; give a whole number from 1 to 3840"),
        ("groups", 0, "attribute groups is 0; give a whole number from 1 to 3840"),
        ("groups", 10**9, "attribute groups is 1000000000; give a whole number from 1 to 3840"),
        ("groups", 8, "attribute groups is 8, more than the 7 patches to keep"),
        ("threshold_scale", float("nan"), "attribute threshold_scale is nan; give a finite number above 0"),
        ("threshold_scale", "high", "attribute threshold_scale is a string; give a finite number above 0"),
        ("center", "both", 'attribute center is "both"; give token, feature'),
        ("center", 1, "attribute center is an integer; give token, feature"),
        ("cls_slot", 7, "attribute cls_slot is 7; give 0 or 1"),
        ("nms_score", "abs_v", r"it takes 1 inputs \(features\), and here are 2"),
    ],
)
def test_wrong_attributes_are_refused_with_a_sentence(
    name: str, value: Any, sentence: str, native_library: Path
) -> None:
    model = changed(op_model("prunesid", **PRUNESID), name, value)
    inputs = feeds(np.random.default_rng(0), model)
    with pytest.raises(Exception, match=f"VtxPruneSID: .*{sentence}"):
        session(model, native_library).run(None, inputs)


def test_inputs_that_do_not_fit_are_refused(native_library: Path) -> None:
    model = without_function(op_model("prunesid", **PRUNESID))
    del model.graph.input[1].type.tensor_type.shape.dim[1]
    model.graph.input[1].type.tensor_type.shape.dim.add().dim_param = "any"
    inputs = feeds(np.random.default_rng(0), op_model("prunesid", **PRUNESID))
    inputs["scores"] = inputs["scores"][:, :-3]
    with pytest.raises(Exception, match="VtxPruneSID: features has 26 rows, which makes T 25 without CLS, but T is 22"):
        session(model, native_library).run(None, inputs)


def test_a_sequence_that_is_too_short_is_refused(native_library: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = {"hidden_states": rng.random((20, 8), np.float32)}
    call = step_call(TextSimilarityTopK(), inputs, start=2, visual=12, keep=4)
    model = without_function(model_of(call))
    short = {"hidden_states": inputs["hidden_states"][None, :7], "visual_start": np.array([0])}
    with pytest.raises(Exception, match="TopK: hidden_states has 7 rows, fewer than visual_count, which is 12"):
        session(model, native_library).run(None, short)


def test_a_pipeline_answers_alike(
    tiny_bundle: Path, photo: Path, native_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtexport import Pipeline
    from vtexport.backends.onnxruntime import backend as module
    from vtexport.plugins import libraries

    monkeypatch.setattr(module, "choose_library", lambda: libraries.Choice(native_library))
    native = Pipeline.open(tiny_bundle, "prunesid-16")
    assert native.native.library == native_library
    monkeypatch.setattr(module, "choose_library", lambda: libraries.Choice(None, "for a comparison"))
    body = Pipeline.open(tiny_bundle, "prunesid-16")
    tokens = [each.encode(photo) for each in (native, body)]
    np.testing.assert_array_equal(tokens[0].keep_indices, tokens[1].keep_indices)
    answers = [each.generate(photo, "What is this?", max_new_tokens=8).text for each in (native, body)]
    assert answers[0] == answers[1]


def test_a_library_that_is_none_is_said(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtexport import Pipeline
    from vtexport.backends.onnxruntime import backend as module
    from vtexport.errors import MissingDependencyError
    from vtexport.plugins import libraries

    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(module, "choose_library", lambda: libraries.Choice(tmp_path / "broken.so"))
    with pytest.raises(MissingDependencyError, match=r"cannot take .*broken\.so.*vtexport plugins build"):
        Pipeline.open(tiny_bundle, "prunesid-16")


def test_doctor_says_which_form_runs(native_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from vtexport.cli.main import main
    from vtexport.plugins import libraries

    def finding(choice: libraries.Choice) -> dict[str, Any]:
        monkeypatch.setattr(libraries, "choose_library", lambda: choice)
        assert main(["doctor", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["findings"]
        return next(each for each in found if "pruning ops run" in each["what"])

    assert str(native_library) in finding(libraries.Choice(native_library))["what"]
    without = finding(libraries.Choice(None, "it is not built"))
    assert "ONNX function bodies" in without["what"]
    assert "it is not built" in without["what"]
    assert "vtexport plugins build" in without["next_step"]
