"""The ONNX function against the reference on random inputs, and what both have to hold on any input."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pruning_cases import run_stock, structured

from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select

TOKENS, WIDTH = 30, 24
VARIANTS: list[dict[str, Any]] = [
    {"keep": 12},
    {"keep": 12, "order": "raster"},
    {"keep": 7, "cls_slot": False},
    {"keep": 16, "center": "feature", "groups": 5},
    {"keep": 16, "nms_score": "abs_v", "threshold_scale": 1.5, "groups": 4},
    {"keep": 24, "threshold_scale": 0.2},
    {"keep": 31, "groups": 6},
    {"keep": 12, "variant": "paper", "groups": 5},
    {"keep": 12, "variant": "qwen"},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))


@functools.cache
def op(batch: int = 1, **request: Any) -> Any:
    return run_stock(diagnostic_model("prunesid", tokens=TOKENS, width=WIDTH, batch=batch, **request))


def placed(variant: dict[str, Any]) -> Any:
    """The op of a variant, its settings those that were given and the defaults that follow from it."""
    given = {name: value for name, value in variant.items() if name != "keep"}
    method = get_method("prunesid")
    return method.first_op(make_options(method, given), ModelShape((5, 6), layers=32), variant["keep"]).op


def inputs(variant: dict[str, Any], features: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """The named inputs of a variant from [B, 1 + T, D] and [B, T]."""
    named = {"features": features if placed(variant).cls_slot else features[:, 1:]}
    return named if placed(variant).nms_score == "abs_v" else {**named, "scores": scores}


def check_valid(found: np.ndarray, variant: dict[str, Any]) -> None:
    slot = int(placed(variant).cls_slot)
    for image in found.tolist():
        assert image[:slot] == [-1] * slot
        patches = image[slot:]
        assert len(patches) == len(set(patches)) == variant["keep"] - slot
        assert set(patches) <= set(range(TOKENS))
        if variant.get("order") == "raster":
            assert patches == sorted(patches)


@variants
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_function_equals_reference(variant: dict[str, Any], seed: int, tied: bool) -> None:
    features = structured(seed, TOKENS + 1, WIDTH, 10)[None]
    scores = np.random.default_rng(seed).random((1, TOKENS), np.float32)
    if tied:  # few values, a good part of them zero
        scores = np.floor(4 * scores) / 4
    named = inputs(variant, features, scores)
    expected = select("prunesid", **named, **variant)
    # A token between two groups, or a pair at the threshold, has no answer that float32 could promise.
    assume(expected.details["group_margin"].min() > 3e-4)
    assume(expected.details["nms_margin"].min() > 1e-5)
    if placed(variant).nms_score == "abs_v":
        loading = np.sort(expected.details["scores"][0])
        assume(np.diff(loading).min() > 1e-5)
    found = op(**variant)(**named)
    for name in ("groups", "sizes", "survivors", "taken"):
        np.testing.assert_array_equal(found[name], expected.details[name])
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    assert found["kept_features"].tobytes() == expected.kept_features.tobytes()
    np.testing.assert_allclose(found["rho"], expected.details["rho"], atol=1e-6)


FEATURES = ["equal", "zero", "rank1", "large", "tiny", "repeated", "one token", "structured"]
SCORES = ["zero", "negative", "underflow", "equal", "one", "random"]


def hostile_features(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = (TOKENS + 1, WIDTH)
    x = {
        "equal": np.full(shape, 0.3),
        "zero": np.zeros(shape),
        "rank1": rng.standard_normal((shape[0], 1)) * rng.standard_normal((1, WIDTH)),
        "large": rng.standard_normal(shape) * 1e30,
        "tiny": rng.standard_normal(shape) * 1e-38,
        "repeated": np.repeat(rng.standard_normal((11, WIDTH)), 3, axis=0)[: shape[0]],
        "one token": np.eye(shape[0])[4][:, None] * rng.standard_normal((1, WIDTH)),
        "structured": structured(5, *shape, 10),
    }
    return x[kind].astype(np.float32)[None]


def hostile_scores(kind: str) -> np.ndarray:
    rng = np.random.default_rng(6)
    z = {
        "zero": np.zeros(TOKENS),
        "negative": -rng.random(TOKENS),
        "underflow": np.full(TOKENS, 1e-45),
        "equal": np.full(TOKENS, 0.5),
        "one": np.eye(TOKENS)[3],
        "random": rng.random(TOKENS),
    }
    return z[kind].astype(np.float32)[None]


@pytest.mark.filterwarnings("error")
@variants
def test_hostile_inputs_give_a_valid_selection(variant: dict[str, Any]) -> None:
    for features in FEATURES:
        for scores in SCORES:
            named = inputs(variant, hostile_features(features), hostile_scores(scores))
            check_valid(op(**variant)(**named)["keep_indices"], variant)
            check_valid(select("prunesid", **named, **variant).keep_indices, variant)


def test_nan_gives_a_valid_selection_in_onnx() -> None:
    """A graph cannot refuse its input; the count at least is kept."""
    features, scores = hostile_features("structured"), hostile_scores("random")
    features[0, 3:9, 2] = np.nan
    scores[0, ::2] = np.nan
    check_valid(op(keep=12)(features=features, scores=scores)["keep_indices"], {"keep": 12})


@variants
def test_an_image_does_not_depend_on_its_batch(variant: dict[str, Any]) -> None:
    features = np.stack([structured(seed, TOKENS + 1, WIDTH, 10) for seed in (1, 2, 3)])
    scores = np.random.default_rng(0).random((3, TOKENS), np.float32)
    features[2, 1:] = np.nan
    together = op(batch=3, **variant)(**inputs(variant, features, scores))
    for image in range(2):
        alone = op(**variant)(**inputs(variant, features[image : image + 1], scores[image : image + 1]))
        for name in ("keep_indices", "groups", "survivors", "taken"):
            np.testing.assert_array_equal(together[name][image], alone[name][0])


def test_raster_is_the_same_set_sorted() -> None:
    features = structured(3, TOKENS + 1, WIDTH, 10)[None]
    scores = np.random.default_rng(3).random((1, TOKENS), np.float32)
    by_group = op(keep=12)(features=features, scores=scores)["keep_indices"]
    by_raster = op(keep=12, order="raster")(features=features, scores=scores)["keep_indices"]
    assert by_group.tolist() != by_raster.tolist()
    np.testing.assert_array_equal(np.sort(by_group), by_raster)


def test_permuted_tokens_permute_the_selection() -> None:
    features = structured(4, TOKENS + 1, WIDTH, 10)[None]
    scores = np.random.default_rng(4).random((1, TOKENS), np.float32)
    order = np.random.default_rng(5).permutation(TOKENS)
    plain = op(keep=16)(features=features, scores=scores)["keep_indices"][0]
    moved = np.concatenate([features[:, :1], features[:, 1:][:, order]], axis=1)
    permuted = op(keep=16)(features=moved, scores=scores[:, order])["keep_indices"][0]
    np.testing.assert_array_equal(order[permuted[1:]], plain[1:])


def test_a_scaled_score_changes_nothing() -> None:
    features = structured(6, TOKENS + 1, WIDTH, 10)[None]
    scores = np.random.default_rng(6).random((1, TOKENS), np.float32)
    plain, scaled = (op(keep=12)(features=features, scores=each)["keep_indices"] for each in (scores, scores * 8))
    np.testing.assert_array_equal(plain, scaled)


def test_a_shifted_token_keeps_its_group_under_token_centring_only() -> None:
    features = structured(7, TOKENS + 1, WIDTH, 10)[None].astype(np.float64)
    y = 1 / (1 + np.exp(-features))
    y[0, 9] += 0.05
    shifted, scores = np.log(y / (1 - y)), np.ones((1, TOKENS))
    plain, moved = (select("prunesid", each, scores, keep=12) for each in (features, shifted))
    np.testing.assert_array_equal(plain.details["groups"], moved.details["groups"])
    np.testing.assert_allclose(plain.details["eigenvalues"], moved.details["eigenvalues"], atol=1e-12)
    other = [select("prunesid", each, scores, keep=12, center="feature") for each in (features, shifted)]
    assert np.abs(other[0].details["eigenvalues"] - other[1].details["eigenvalues"]).max() > 1e-6


def test_only_positive_scores_survive() -> None:
    features = 3 + structured(9, TOKENS + 1, WIDTH, 10)[None]  # all similar, so the threshold is far above 1
    scores = np.maximum(0, np.arange(TOKENS, dtype=np.float32) - 20)[None]
    request = {"keep": 16, "groups": 1, "threshold_scale": 1e6}
    found = select("prunesid", features, scores, **request)
    assert found.details["survivors"].tolist() == [[9]]
    assert found.keep_indices.tolist() == [[-1, *range(29, 20, -1), *range(6)]]
    np.testing.assert_array_equal(op(**request)(features=features, scores=scores)["keep_indices"], found.keep_indices)


def test_suppression_rules() -> None:
    features = structured(8, TOKENS + 1, WIDTH, 10)[None]
    scores = np.random.default_rng(8).random((1, TOKENS), np.float32)
    found = select("prunesid", features, scores, keep=12, threshold_scale=0.1)
    details = found.details
    unit = features[0, 1:] / np.linalg.norm(features[0, 1:], axis=1, keepdims=True)
    kept = found.keep_indices[0, 1:]
    for group, (survivors, taken) in enumerate(zip(details["survivors"][0], details["taken"][0], strict=True)):
        members = np.flatnonzero(details["groups"][0] == group)
        if not len(members):
            continue
        mine = [token for token in kept if details["groups"][0, token] == group]
        assert mine[0] == members[scores[0, members].argmax()]
        assert len(mine) == taken
        for place, token in enumerate(mine[: min(survivors, taken)]):
            assert all(unit[token] @ unit[other] <= details["tau"][0] for other in mine[:place])


def all_inputs(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, its loop bodies included."""
    inner = (name for attribute in node.attribute for each in attribute.g.node for name in all_inputs(each))
    return {*node.input, *inner}


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    model = op_model("prunesid", tokens=TOKENS, width=WIDTH, **variant)
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == op_model("prunesid", tokens=TOKENS, width=WIDTH, **variant).SerializeToString()
    (node,), (function,) = model.graph.node, model.functions
    assert (node.domain, node.op_type) == (function.domain, function.name) == ("vtexport", "VtxPruneSID")
    assert model.ir_version == 10
    assert {(each.domain, each.version) for each in model.opset_import} == {("", 20), ("vtexport", 1)}
    assert [(each.domain, each.version) for each in function.opset_import] == [("", 20)]
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert set(values) == set(function.attribute)
    assert (values["plugin_namespace"], values["plugin_version"]) == (b"vtexport", b"1")
    assert values["keep"] == variant["keep"]
    assert values["groups"] == variant.get("groups", max(variant["keep"] // 4, 4 * (variant.get("variant") == "qwen")))
    used = {name for each in function.node for name in all_inputs(each)} | set(function.output)
    assert all(used.intersection(each.output) for each in function.node), "ONNX Runtime would run dead Loops"
    assert list(node.input) == list(function.input) == [each.name for each in model.graph.input]
    assert list(node.output) == list(function.output) == ["kept_features", "keep_indices"]
    outputs = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in model.graph.output}
    assert outputs == {"kept_features": [1, variant["keep"], WIDTH], "keep_indices": [1, variant["keep"]]}
