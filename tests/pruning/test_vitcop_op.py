"""ViTCoP's ONNX function against its reference on random inputs, and what both have to hold on any input."""

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

GRID, WIDTH, HEADS = (5, 6), 8, 3
TOKENS = 30
VARIANTS: list[dict[str, Any]] = [
    {"keep": 17},
    {"keep": 17, "clustering": "fixed", "radius": 0.3},
    {"keep": 12, "variant": "paper", "cluster_count": 5, "cutoff": 3.0},
    {"keep": 30, "variant": "paper", "clustering": "fixed", "cluster_share": 0.1},
    {"keep": 1},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))


@functools.cache
def op(batch: int = 1, **request: Any) -> Any:
    sizes = {"tokens": TOKENS, "grid": GRID, "width": WIDTH, "heads": HEADS, "head_dim": 4, "batch": batch}
    return run_stock(diagnostic_model("vitcop", **sizes, clusters=True, **request))


def inputs(seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "features": rng.standard_normal((batch, TOKENS, WIDTH), np.float32),
        "scores": rng.random((batch, TOKENS), np.float32),
        "keys": 2 * rng.standard_normal((batch, TOKENS, HEADS, 4), np.float32),
    }


def check_valid(found: dict[str, Any], keep: int) -> None:
    for kept in found["keep_indices"].tolist():
        assert kept == sorted(set(kept))
        assert len(kept) == keep
        assert set(kept) <= set(range(TOKENS))
    assert found["labels"].shape == found["keep_indices"].shape
    assert found["labels"].min() >= -1
    assert found["labels"].max() < keep


@variants
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_function_equals_reference(variant: dict[str, Any], seed: int, tied: bool) -> None:
    named = inputs(seed)
    if tied:
        named["scores"] = np.floor(4 * named["scores"]) / 4
    expected = select("vitcop", **named, grid=GRID, clusters=True, **variant)
    # Equal densities of different tokens are float32's rounding, and so are equal distances.
    assume(min(expected.details[f"{name}_margin"].min() for name in ("density", "parent", "center")) > 1e-5)
    found = op(**variant)(**named)
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    assert found["kept_features"].tobytes() == expected.kept_features.tobytes()
    for name in ("labels", "centers", "parent"):
        np.testing.assert_array_equal(found[name], expected.details[name], err_msg=name)
    for name in ("density", "delta"):
        np.testing.assert_allclose(found[name], expected.details[name], rtol=2e-5, err_msg=name)


def hostile_inputs() -> dict[str, dict[str, np.ndarray]]:
    plain = inputs(5)
    keys = plain["keys"]
    rank1 = keys[:, :, :1, :1] * keys[:, :1]
    scores = {
        "zero scores": np.zeros_like(plain["scores"]),
        "negative scores": -plain["scores"],
        "equal scores": np.full_like(plain["scores"], 0.25),
        "tiny scores": np.full_like(plain["scores"], 1e-45),
        "largest scores": plain["scores"] * np.float32(3e38),
    }
    keys_ = {
        "equal keys": np.full_like(keys, 0.3),
        "zero keys": np.zeros_like(keys),
        "rank 1 keys": rank1,
        "repeated keys": np.repeat(keys[:, :6], 5, axis=1),
        "large keys": keys * np.float32(1e30),
        "tiny keys": keys * np.float32(1e-38),
        "far keys": keys * np.float32(100),
    }
    return {name: {**plain, "scores": value} for name, value in scores.items()} | {
        name: {**plain, "keys": value} for name, value in keys_.items()
    }


@pytest.mark.filterwarnings("error")
@variants
@pytest.mark.parametrize("kind", list(hostile_inputs()))
def test_hostile_inputs(kind: str, variant: dict[str, Any]) -> None:
    named = hostile_inputs()[kind]
    found = op(**variant)(**named)
    expected = select("vitcop", **named, grid=GRID, clusters=True, **variant)
    check_valid(found, variant["keep"])
    check_valid({"keep_indices": expected.keep_indices, "labels": expected.details["labels"]}, variant["keep"])
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)


def test_nan_gives_a_valid_selection_in_onnx_and_is_refused_by_the_reference() -> None:
    named = inputs(6)
    named["scores"][0, ::3] = np.nan
    named["keys"][0, 4:9] = np.nan
    for clustering in ("official", "fixed"):
        check_valid(op(keep=17, clustering=clustering)(**named), 17)
    with pytest.raises(InputError, match="NaN"):
        select("vitcop", **named, grid=GRID, keep=17, clusters=True)


def test_the_keys_change_nothing_but_the_clusters() -> None:
    """So an op without clusters does not read them."""
    named = inputs(7)
    kept = {seed: op(keep=17)(**{**named, "keys": inputs(seed)["keys"]}) for seed in (1, 2)}
    np.testing.assert_array_equal(kept[1]["keep_indices"], kept[2]["keep_indices"])
    assert kept[1]["labels"].tolist() != kept[2]["labels"].tolist()
    model = op_model("vitcop", tokens=TOKENS, grid=GRID, width=WIDTH, keep=17)
    assert [each.name for each in model.graph.input] == ["features", "scores"]
    assert [each.name for each in model.graph.output] == ["kept_features", "keep_indices"]
    assert not {"Gemm", "Exp", "ArgMin"} & {node.op_type for node in model.functions[0].node}
    with pytest.raises(InputError, match="takes no keys"):
        select("vitcop", **named, grid=GRID, keep=17)


def test_an_image_does_not_depend_on_its_batch() -> None:
    named = inputs(8, batch=3)
    named["keys"][2] = np.nan
    together = op(batch=3, keep=17)(**named)
    for image in range(2):
        alone = op(keep=17)(**{name: each[image : image + 1] for name, each in named.items()})
        for name in ("keep_indices", "labels", "centers"):
            np.testing.assert_array_equal(together[name][image], alone[name][0])


def test_permuted_tokens_permute_the_selection() -> None:
    named, order = inputs(9), np.random.default_rng(9).permutation(TOKENS)
    request = {"grid": GRID, "keep": 11}
    plain = select("vitcop", named["features"], named["scores"], **request).keep_indices[0]
    moved = select("vitcop", named["features"][:, order], named["scores"][:, order], **request).keep_indices[0]
    np.testing.assert_array_equal(np.sort(order[moved]), plain)


@pytest.mark.parametrize("grid", [(4, 9), (9, 4), (20, 20), (1, 40)])
def test_the_radius_is_in_image_sides(grid: tuple[int, int]) -> None:
    """Down and across are shares of their own side; pairs at the very radius are in it."""
    tokens = grid[0] * grid[1]
    rng = np.random.default_rng(3)
    named = {
        "features": np.zeros((1, tokens, 2), np.float32),
        "scores": rng.random((1, tokens), np.float32),
        "keys": 3 * rng.standard_normal((1, tokens, 1, 8), np.float32),
    }
    request = {"keep": tokens, "grid": grid, "clusters": True, "radius": 0.5}
    expected = select("vitcop", **named, **request)
    y, x = np.divmod(np.arange(tokens), grid[1])
    apart = np.hypot((y[:, None] - y) / grid[0], (x[:, None] - x) / grid[1])
    density, parent, delta = (expected.details[name][0] for name in ("density", "parent", "delta"))
    near = (apart <= 0.5 + 1e-9) & ~np.eye(tokens, dtype=bool)
    assert (near & (apart > 0.5 - 1e-9)).any() == (grid[0] % 2 == 0 or grid[1] % 2 == 0)
    distance = np.linalg.norm(named["keys"][0, :, None, 0] - named["keys"][0, None, :, 0], axis=-1)
    candidates = np.where(near & (density[None] >= density[:, None]), distance, np.inf)
    np.testing.assert_array_equal(parent, candidates.argmin(1))
    np.testing.assert_allclose(delta, candidates.min(1), rtol=1e-5)
    model = diagnostic_model("vitcop", tokens=tokens, width=2, heads=1, head_dim=8, **request)
    np.testing.assert_array_equal(run_stock(model)(**named)["parent"][0], parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "keep=0 .* from 1 to 30"),
        ({"keep": 31}, "keep=31 .* from 1 to 30"),
        ({"cluster_count": 18}, "cluster_count=18 .* from 1 to 17"),
        ({"cluster_share": 1.5}, "cluster_share=1.5 .* up to 1"),
        ({"cutoff": 0}, "a number above 0"),
        ({"stages": "2"}, "give all, 1"),
        ({"grid": None}, None),
    ],
)
def test_impossible_ops_are_refused(change: dict[str, Any], message: str | None) -> None:
    request = {"tokens": TOKENS, "grid": GRID, "width": WIDTH, "keep": 17, "clusters": True, **change}
    with pytest.raises(UsageError, match=message or r"vitcop needs grid=\(rows, columns\)"):
        op_model("vitcop", **request)


def test_stage_one_alone_is_said() -> None:
    method = get_method("vitcop")
    (remark,) = method.plan(make_options(method, {"stages": "1"}), ModelShape((24, 24), layers=32), 172).remarks
    assert "so every layer sees" in remark
    assert "172 visual tokens" in remark


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    model = op_model("vitcop", tokens=TOKENS, grid=GRID, width=WIDTH, clusters=True, **variant)
    onnx.checker.check_model(model, full_check=True)
    (node,), (function,) = model.graph.node, model.functions
    assert (node.domain, node.op_type) == (function.domain, function.name) == ("vtexport", "VtxViTCoP")
    assert list(node.output) == list(function.output) == ["kept_features", "keep_indices", "labels"]
    assert list(node.input) == ["features", "scores", "keys"]
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert set(values) == set(function.attribute)
    assert values["cluster_count"] >= 1
    labels = model.graph.output[2].type.tensor_type
    assert (labels.elem_type, [dim.dim_value for dim in labels.shape.dim]) == (
        onnx.TensorProto.INT64,
        [1, variant["keep"]],
    )
