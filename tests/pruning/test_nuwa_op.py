"""Nüwa's ONNX function against its reference on random inputs, and what both have to hold on any input."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pruning_cases import run_stock

from vtexport.errors import InputError, UsageError
from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select
from vtexport.pruning.ops.nuwa import candidates, collectors

WIDTH, HEADS = 12, 3
VARIANTS: list[dict[str, Any]] = [
    {"keep": 10, "grid": (6, 6)},
    {"keep": 10, "grid": (6, 6), "variant": "paper"},
    {"keep": 17, "grid": (5, 7), "distance": 9.0, "pillar_quantile": 0.8},
    {"keep": 35, "grid": (5, 7), "variant": "paper", "pillar_quantile": 1.0},
    {"keep": 11, "grid": (4, 8), "top_n": 4, "pillar_quantile": 0.0},
    {"keep": 3, "grid": (1, 9)},
    {"keep": 1, "grid": (3, 3)},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))


def op(variant: dict[str, Any], batch: int = 1) -> Any:
    return _op(batch, tuple(variant.items()))


@functools.cache
def _op(batch: int, variant: tuple[tuple[str, Any], ...]) -> Any:
    request = dict(variant)
    sizes = {"tokens": request["grid"][0] * request["grid"][1], "width": WIDTH, "heads": HEADS, "head_dim": 4}
    return run_stock(diagnostic_model("nuwa", **sizes, batch=batch, **request))


def inputs(variant: dict[str, Any], seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = variant["grid"][0] * variant["grid"][1]
    named = {
        "features": rng.standard_normal((batch, tokens, WIDTH), np.float32),
        "scores": rng.random((batch, tokens), np.float32),
        "similarity_features": rng.standard_normal((batch, tokens, WIDTH), np.float32),
    }
    if variant.get("variant") == "paper":
        named["keys"] = rng.standard_normal((batch, tokens, HEADS, 4), np.float32)
    return named


def check_valid(found: dict[str, Any], variant: dict[str, Any], features: np.ndarray) -> None:
    for image, kept in enumerate(found["keep_indices"].tolist()):
        assert kept == sorted(set(kept))
        assert len(kept) == variant["keep"]
        assert set(kept) <= set(range(variant["grid"][0] * variant["grid"][1]))
        pillar = ~found["merged"][image]
        own = features[image][np.array(kept)]
        assert found["kept_features"][image][pillar].tobytes() == own[pillar].tobytes()


@variants
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_function_equals_reference(variant: dict[str, Any], seed: int, tied: bool) -> None:
    named = inputs(variant, seed)
    if tied:  # with official salience, ties are exact
        named["scores"] = np.floor(4 * named["scores"]) / 4
    expected = select("nuwa", **named, **variant)
    if variant.get("variant") == "paper":  # computed numbers
        assume(min(expected.details[name].min() for name in ("region_margin", "global_margin", "pillar_margin")) > 1e-5)
    found = op(variant)(**named)
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    np.testing.assert_array_equal(found["merged"], expected.merged)
    np.testing.assert_allclose(found["kept_features"], expected.kept_features, rtol=2e-5, atol=2e-5)
    check_valid(found, variant, named["features"])
    check_valid(vars(expected), variant, named["features"])


def test_the_steps_as_the_text_has_them() -> None:
    """Separation, alignment, pillars and aggregation once more, token by token."""
    variant = {"keep": 10, "grid": (6, 6)}
    named = inputs(variant, 3)
    x, a, z = (named[name][0].astype(np.float64) for name in ("features", "scores", "similarity_features"))
    offered: list[int] = []
    for top in range(0, 6, 2):
        for left in range(0, 6, 2):
            region = [6 * (top + y) + left + x_ for y in (0, 1) for x_ in (0, 1)]
            offered += sorted(region, key=lambda token: -a[token])[:2]
    kept = sorted(sorted(offered, key=lambda token: -a[token])[:10])
    threshold = np.quantile(a[kept], 0.55)
    found = select("nuwa", **named, **variant)
    assert found.keep_indices.tolist() == [kept]
    assert found.merged is not None
    np.testing.assert_array_equal(found.merged[0], a[kept] < threshold)
    for row, token in enumerate(kept):
        total, others = 0.0, np.zeros(WIDTH)
        for other in range(36):
            apart = np.hypot(token // 6 - other // 6, token % 6 - other % 6)
            cosine = z[token] @ z[other] / np.linalg.norm(z[token]) / np.linalg.norm(z[other])
            weight = max(0, cosine) * (1 - min(apart / 280**0.5, 1))
            total += weight
            others += weight * x[other] * (other != token)
        expected = x[token] + (others / total if found.merged[0, row] else 0)
        np.testing.assert_allclose(found.kept_features[0, row], expected, rtol=1e-5, atol=1e-6)


def test_proximity_on_the_grid() -> None:
    """The weights of equal similarity features are the proximities."""
    tokens = 49
    named = {
        "features": np.eye(tokens, dtype=np.float32)[None],
        "scores": np.where(np.arange(tokens) == 24, 0.5, 1)[None].astype(np.float32),
        "similarity_features": np.ones((1, tokens, tokens), np.float32),
    }
    request = {"keep": tokens, "grid": (7, 7), "pillar_quantile": 0.01, "variant": "official"}
    found = select("nuwa", **named, **request)
    assert found.merged is not None
    assert np.flatnonzero(found.merged[0]).tolist() == [24], "the one token below all others"
    weights = found.kept_features[0, 24]
    assert weights[24] == 1
    ratio = weights / weights[25]
    expected = {25: 0.9402, 26: 0.8805, 27: 0.8207, 48: 0.7465}  # at distances 1, 2, 3 and the root of 18
    for token, proximity in expected.items():
        np.testing.assert_allclose(ratio[token], proximity / expected[25], atol=1e-4)


def test_a_short_reach_or_no_collectors_leave_all_features_alone() -> None:
    variant = {"keep": 12, "grid": (6, 6)}
    named = inputs(variant, 4)
    own = np.take_along_axis(named["features"], select("nuwa", **named, **variant).keep_indices[:, :, None], axis=1)
    for change in ({"distance": 1.0}, {"pillar_quantile": 0.0}):
        found = op({**variant, **change})(**named)
        np.testing.assert_allclose(found["kept_features"], own, rtol=1e-6)
    assert not found["merged"].any()
    near = op({**variant, "distance": 1.0001, "variant": "official"})(**named)
    assert near["merged"].sum() == collectors(0.55, 12)


def test_the_papers_weights_are_a_mean() -> None:
    variant = {"keep": 10, "grid": (6, 6), "variant": "paper"}
    named = inputs(variant, 5)
    named["features"][:] = 7
    np.testing.assert_allclose(op(variant)(**named)["kept_features"], 7, rtol=1e-6)
    official = {"keep": 10, "grid": (6, 6)}
    del named["keys"]
    found = op(official)(**named)
    assert (found["kept_features"][found["merged"]] > 7.001).all()


@variants
def test_every_region_gives_at_most_its_share(variant: dict[str, Any]) -> None:
    rows, columns = variant["grid"]
    method = get_method("nuwa")
    made = make_options(method, {name: value for name, value in variant.items() if name not in ("keep", "grid")})
    top_n = method.first_op(made, ModelShape(variant["grid"], layers=32), variant["keep"]).op.settings()["top_n"]
    assert candidates(variant["grid"], top_n) >= variant["keep"]
    named = inputs(variant, 6)
    kept = op(variant)(**named)["keep_indices"][0]
    across = -(-columns // 2)
    regions = (kept // columns // 2) * across + kept % columns // 2
    assert np.bincount(regions).max() <= top_n
    assert candidates((rows, columns), 4) == rows * columns


@pytest.mark.parametrize(("quantile", "keep", "below"), [(0.55, 21, 11), (0.55, 112, 62), (0.0, 9, 0), (1, 9, 8)])
def test_collectors_are_those_below_the_quantile(quantile: float, keep: int, below: int) -> None:
    values = np.random.default_rng(0).permutation(keep).astype(np.float64)
    assert collectors(quantile, keep) == below == (values < np.quantile(values, quantile) - 1e-9).sum()
    assert collectors(float(np.float32(quantile)), keep) == below


def hostile_inputs(variant: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    plain = inputs(variant, 7)
    scores, similar, features = plain["scores"], plain["similarity_features"], plain["features"]
    changed: dict[str, dict[str, np.ndarray]] = {
        "zero scores": {"scores": np.zeros_like(scores)},
        "negative scores": {"scores": -scores},
        "lowest scores": {"scores": np.full_like(scores, np.finfo(np.float32).min)},
        "equal scores": {"scores": np.full_like(scores, 0.25)},
        "equal features": {"features": np.full_like(features, 0.3), "similarity_features": np.full_like(similar, 0.3)},
        "zero similarity": {"similarity_features": np.zeros_like(similar)},
        "opposite similarity": {"similarity_features": similar[:, :1] * np.sign(similar[:, :, :1])},
        "tiny similarity": {"similarity_features": similar * np.float32(1e-38)},
        "large similarity": {"similarity_features": similar * np.float32(1e30)},
        "large features": {"features": features * np.float32(1e30)},
    }
    if "keys" in plain:
        changed["zero keys"] = {"keys": np.zeros_like(plain["keys"])}
        changed["large keys"] = {"keys": plain["keys"] * np.float32(1e25)}
    return {name: {**plain, **change} for name, change in changed.items()}


@pytest.mark.filterwarnings("error")
@variants
def test_hostile_inputs(variant: dict[str, Any]) -> None:
    for kind, named in hostile_inputs(variant).items():
        found, expected = op(variant)(**named), select("nuwa", **named, **variant)
        check_valid(found, variant, named["features"])
        check_valid(vars(expected), variant, named["features"])
        if "keys" not in named:
            np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices, err_msg=kind)
            np.testing.assert_array_equal(found["merged"], expected.merged, err_msg=kind)
        if kind not in ("large similarity", "tiny similarity", "large features", "large keys"):
            assert np.isfinite(found["kept_features"]).all(), kind


def test_equal_scores_keep_the_first_of_every_region_and_make_all_pillars() -> None:
    variant = {"keep": 9, "grid": (6, 6)}
    named = inputs(variant, 8)
    named["scores"][:] = 0.5
    found = op(variant)(**named)
    assert found["keep_indices"].tolist() == [[0, 2, 4, 12, 14, 16, 24, 26, 28]]
    assert not found["merged"].any()


@variants
def test_nan_gives_a_valid_selection_in_onnx_and_is_refused_by_the_reference(variant: dict[str, Any]) -> None:
    named = inputs(variant, 9)
    for each in named.values():
        each[0, ::2] = np.nan
    found = op(variant)(**named)
    check_valid({**found, "merged": np.ones_like(found["merged"])}, variant, named["features"])
    with pytest.raises(InputError, match="NaN"):
        select("nuwa", **named, **variant)


def test_an_image_does_not_depend_on_its_batch() -> None:
    variant = VARIANTS[1]
    named = inputs(variant, 10, batch=3)
    for each in named.values():
        each[2] = np.nan
    together = op(variant, batch=3)(**named)
    for image in range(2):
        alone = op(variant)(**{name: each[image : image + 1] for name, each in named.items()})
        for name in ("keep_indices", "merged"):
            np.testing.assert_array_equal(together[name][image], alone[name][0])
        assert together["kept_features"][image].tobytes() == alone["kept_features"][0].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "keep=0 .* from 1 to 36"),
        ({"keep": 37}, "keep=37 .* from 1 to 36"),
        ({"keep": 19, "top_n": 2}, "top_n=2 .* keep=19 on 6 x 6 patches; give a whole number from 3 to 4"),
        ({"top_n": 5}, "top_n=5 .* from 2 to 4"),
        ({"pillar_quantile": 1.5}, "pillar_quantile=1.5 .* from 0 to 1"),
        ({"distance": 0}, "a number above 0"),
        ({"stages": "2"}, "give all, 1"),
        ({"tokens": 35, "grid": None}, r"nuwa needs grid=\(rows, columns\)"),
    ],
)
def test_impossible_ops_are_refused(change: dict[str, Any], message: str) -> None:
    request = {"tokens": 36, "grid": (6, 6), "width": WIDTH, "keep": 10, **change}
    with pytest.raises(UsageError, match=message):
        op_model("nuwa", **request)


def test_stage_one_alone_is_said() -> None:
    method = get_method("nuwa")
    (remark,) = method.plan(make_options(method, {"stages": "1"}), ModelShape((24, 24), layers=32), 112).remarks
    assert "so every layer sees" in remark
    assert "112 visual tokens" in remark


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    tokens = variant["grid"][0] * variant["grid"][1]
    model = op_model("nuwa", tokens=tokens, width=WIDTH, dtype="float16", **variant)
    onnx.checker.check_model(model, full_check=True)
    (node,), (function,) = model.graph.node, model.functions
    assert (node.domain, node.op_type) == (function.domain, function.name) == ("vtexport", "VtxNuwa")
    assert list(node.output) == list(function.output) == ["kept_features", "keep_indices", "merged"]
    with_keys = ["keys"] if variant.get("variant") == "paper" else []
    assert list(node.input) == ["features", "scores", *with_keys, "similarity_features"]
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert set(values) == set(function.attribute)
    assert values["top_n"] >= 1
    merged = model.graph.output[2].type.tensor_type
    assert (merged.elem_type, [dim.dim_value for dim in merged.shape.dim]) == (
        onnx.TensorProto.BOOL,
        [1, variant["keep"]],
    )
