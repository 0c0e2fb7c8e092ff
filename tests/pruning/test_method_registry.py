from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

from vtexport.errors import UsageError
from vtexport.pruning import get_method, list_methods, make_parameters, op_model
from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.cluster_merge import ClusterMerge
from vtexport.pruning.llm.key_norm_topk import KeyNormTopK
from vtexport.pruning.llm.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.method import Method
from vtexport.pruning.registry import register


def test_listing_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, dataclasses; from vtexport.pruning import list_methods\n"
        "for method in list_methods(): [field.metadata for field in dataclasses.fields(method.parameters)]\n"
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
    inside = [AttentionTopK, ClusterMerge, KeyNormTopK, TextSimilarityTopK]  # the language model
    op_types = [*(method.op_type for method in list_methods() if method.op_type), *(op.op_type for op in inside)]
    assert len(set(op_types)) == len(op_types)
    for op_type in op_types:
        assert op_type.startswith("Vtx")
        assert op_type not in known


@pytest.mark.parametrize("change", [{"name": "prunesid"}, {"op_type": "VtxPruneSID"}, {"op_type": "TopK"}])
def test_registering_a_taken_or_unsafe_name_fails(change: dict[str, str]) -> None:
    base = type(get_method("prunesid"))
    cls: type[Method] = type("Other", (base,), {"name": "other", "op_type": "VtxOther", **change})
    with pytest.raises(ValueError, match="Other"):
        register(cls)
    assert "other" not in {method.name for method in list_methods()}


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"'prunsid' is not known; did you mean 'prunesid'\? known: .*none.*"):
        get_method("prunsid")


def test_unknown_parameter_names_the_closest() -> None:
    with pytest.raises(UsageError, match=r"'centre' is not known to prunesid; did you mean 'center'"):
        make_parameters(get_method("prunesid"), {"centre": "token"})


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
        make_parameters(get_method("prunesid"), {name: value})


def test_texts_are_converted() -> None:
    texts = {"groups": "16", "threshold_scale": "1.5", "cls_slot": "no", "order": "raster"}
    made = make_parameters(get_method("prunesid"), texts)
    values = {"groups": 16, "threshold_scale": 1.5, "cls_slot": False, "order": "raster"}
    assert made == make_parameters(get_method("prunesid"), values)
    assert make_parameters(get_method("prunesid"), {"groups": "none"}) == make_parameters(get_method("prunesid"), {})


def test_defaults_follow_the_budget() -> None:
    method = get_method("prunesid")
    keep, resolved = method.resolve(make_parameters(method, {}), grid=(24, 24), keep=70)
    assert (keep, resolved.groups, resolved.threshold_scale) == (70, 17, 70 / 32)
    assert method.signals(resolved) == ("cls_attention",)
    assert method.signals(make_parameters(method, {"nms_score": "abs_v"})) == ()


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
