from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

from vtexport.errors import UsageError
from vtexport.pruning import Method, ModelShape, Op, get_method, list_methods, list_ops, make_options, op_model
from vtexport.pruning.op import DecoderOp
from vtexport.pruning.registry import register


def test_listing_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; from vtexport.pruning import list_methods, list_ops\n"
        "from vtexport.pruning.options import settings_of\n"
        "for method in list_methods(): [option.allowed for option in method.options]\n"
        "for op in list_ops(): [option.about for option in settings_of(op)]\n"
        "heavy = {'torch', 'onnx', 'transformers', 'array_api_compat', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names() -> None:
    assert [method.name for method in list_methods()] == sorted(method.name for method in list_methods())
    assert {"none", "prunesid"} <= {method.name for method in list_methods()}


def test_op_types_are_unlike_any_other_op() -> None:
    """TensorRT's parser looks functions up by name alone."""
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    op_types = [op.op_type for op in list_ops()]
    inside = {op.op_type for op in list_ops() if issubclass(op, DecoderOp)}  # the language model
    assert inside == {"VtxAttentionTopK", "VtxClusterMerge", "VtxKeyNormTopK", "VtxTextSimilarityTopK"}
    for op_type in op_types:
        assert op_type.startswith("Vtx")
        assert op_type not in known


@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
def test_methods_name_the_op_that_they_place_first(method: Method) -> None:
    options, shape = make_options(method, {}), ModelShape((24, 24), layers=32)
    if method.op is None:
        with pytest.raises(UsageError, match="no op of its own"):
            method.first_op(options, shape, 64)
    else:
        assert type(method.first_op(options, shape, None if method.name == "none" else 64).op) is method.op


def test_registering_a_taken_name_fails() -> None:
    registered = list_methods()
    cls: type[Method] = type("Other", (type(get_method("prunesid")),), {"name": "prunesid"})
    with pytest.raises(ValueError, match="Other takes the name of PruneSIDMethod"):
        register(cls)
    assert list_methods() == registered


@pytest.mark.parametrize("op_type", ["VtxPruneSID", "VtxClusterMerge", "TopK"])
def test_an_op_of_a_taken_or_unsafe_type_fails(op_type: str) -> None:
    known = list_ops()
    with pytest.raises(ValueError, match="Other"):
        type("Other", (Op,), {"op_type": op_type})
    assert list_ops() == known


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"'prunsid' is not known; did you mean 'prunesid'\? known: .*none.*"):
        get_method("prunsid")


def test_unknown_parameter_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"'centre' is not known to prunesid; did you mean 'center'"):
        make_options(get_method("prunesid"), {"centre": "token"})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("center", "tokens", "token, feature"),
        ("nms_score", 1, "cls_attention, abs_v"),
        ("order", "rows", "group, raster"),
        ("variant", None, "official, paper, qwen"),
        ("groups", 0, "a whole number from 1"),
        ("groups", 2.0, "a whole number from 1"),
        ("groups", True, "a whole number from 1"),
        ("groups", "many", "a whole number from 1"),
        ("threshold_scale", 0, "a number above 0"),
        ("threshold_scale", float("nan"), "a number above 0"),
        ("cls_slot", "maybe", "true or false"),
        ("cls_slot", 1, "true or false"),
    ],
)
def test_bad_parameter_says_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(UsageError, match=allowed):
        make_options(get_method("prunesid"), {name: value})


def test_texts_are_converted() -> None:
    texts = {"groups": "16", "threshold_scale": "1.5", "cls_slot": "no", "order": "raster"}
    made = make_options(get_method("prunesid"), texts)
    values = {"groups": 16, "threshold_scale": 1.5, "cls_slot": False, "order": "raster"}
    assert made == make_options(get_method("prunesid"), values)
    assert make_options(get_method("prunesid"), {"groups": "none"}) == make_options(get_method("prunesid"), {})


def test_defaults_follow_the_budget() -> None:
    method = get_method("prunesid")
    model = ModelShape((24, 24), layers=32)
    schedule = method.plan(make_options(method, {}), model, 70)
    settings = schedule.first.op.settings()
    assert (schedule.keep, schedule.first.keep) == (70, 70)
    assert (settings["groups"], settings["threshold_scale"]) == (17, 70 / 32)
    assert schedule.settings == settings | {"variant": "official", "space": "vision"}
    assert schedule.signals == schedule.first.op.signals() == ("cls_attention",)
    assert method.first_op(make_options(method, {"nms_score": "abs_v"}), model, 70).op.signals() == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 3}, "keep=3 .* from 4 to 577"),
        ({"keep": 578}, "from 4 to 577"),
        ({"keep": 577, "cls_slot": False}, "from 4 to 576"),
        ({"keep": None}, "keep=None"),
        ({"keep": 64.0}, "keep=64.0"),
        ({"groups": 64}, "groups=64 .* from 1 to 63"),
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": 3841}, "at most 3840"),
        ({"width": -1}, "width=-1"),
        ({"batch": 0}, "batch=0"),
        ({"dtype": "float64"}, "dtype='float64' .* float32, float16, bfloat16"),
        ({"method": "none"}, "keep=64 .* all 576 patches"),
    ],
)
def test_impossible_ops_are_refused(change: dict[str, object], message: str) -> None:
    request = {"method": "prunesid", "tokens": 576, "width": 8, "keep": 64, **change}
    with pytest.raises(UsageError, match=message):
        op_model(request.pop("method"), **request)
