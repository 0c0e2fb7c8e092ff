"""SVD-Prune: no code of its authors exists, so the definition, its invariants and float64's SVD are what it is held to.

Beside the golden features, the ONNX function is compared with the reference on random ones.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pruning_cases import run_stock

from vtexport.errors import UsageError
from vtexport.pruning import ModelShape, Schedule, diagnostic_model, get_method, make_options, op_model, select
from vtexport.pruning.types import Limit

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOKENS, WIDTH = 30, 24
METHOD = get_method("svdprune")
VARIANTS: list[dict[str, Any]] = [
    {"keep": 8},
    {"keep": 8, "rank": 3},
    {"keep": 8, "rank": 3, "center": "none"},
    {"keep": 12, "center": "none", "energy": 0.8},
    {"keep": 12, "energy": 1.0, "rank_bound": 5},
    {"keep": 20, "mode": "leverage", "leverage": 0.6},
    {"keep": 3, "mode": "leverage"},
    {"keep": 30, "rank": 30},
    {"keep": 1},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))


@functools.cache
def op(batch: int = 1, **request: Any) -> Any:
    return run_stock(diagnostic_model("svdprune", tokens=TOKENS, width=WIDTH, batch=batch, **request))


def decaying(seed: int, base: float = 1.35) -> np.ndarray:
    """[1, T, D] float32 with singular values in the ratio `base`."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((TOKENS, WIDTH)))
    v, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    return ((u * base ** -np.arange(WIDTH)) @ v)[None].astype(np.float32)


def by_svd(x: np.ndarray, energy: float = 0.9, rank: int = 0, bound: int = 64) -> tuple[int, np.ndarray]:
    """Rank and leverages by the definition: float64's singular value decomposition of [T, D]."""
    u, s, _ = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    k = rank or min(bound, int(np.searchsorted(share, energy)) + 1)
    return k, (u[:, :k] ** 2).sum(axis=1) / k


def check_valid(found: np.ndarray, keep: int) -> None:
    for image in found.tolist():
        assert len(image) == len(set(image)) == keep
        assert set(image) <= set(range(TOKENS))


def check_raster(found: np.ndarray) -> None:
    assert (np.diff(found, axis=1) > 0).all()


@pytest.mark.parametrize("keep", [16, 64])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"center": "none"}, {"rank": 32, "center": "none"}, {"rank": 8}, {"rank": 64}], ids=str
)
def test_golden_features_agree_with_the_svd(seed: int, keep: int, options: dict[str, Any]) -> None:
    features = np.load(GOLDEN / f"features_seed{seed}.npz")["hidden"][None, 1:]
    x = features[0].astype(np.float64)
    x = x if options.get("center") == "none" else x - x.mean(0)
    rank, leverages = by_svd(x, rank=options.get("rank", 0))
    expected = np.sort(np.argsort(-leverages, kind="stable")[:keep])
    for given_ in (features, torch.from_numpy(features)):
        found = select("svdprune", given_, keep=keep, **options)
        assert int(found.details["rank"][0]) == rank
        np.testing.assert_allclose(np.asarray(found.details["leverages"][0]), leverages, atol=1e-9)
        np.testing.assert_array_equal(found.keep_indices[0], expected)
    model = diagnostic_model("svdprune", tokens=576, width=1024, keep=keep, dtype="float16", **options)
    values = run_stock(model)(features=features)
    assert values["residual"][0] <= 1e-6
    assert values["rank"].tolist() == [rank]
    error = np.abs(values["leverages"][0] - leverages).max()
    assert error < 1e-6  # of leverages between 0 and 1 / rank
    if select("svdprune", features, keep=keep, **options).details["cut_margin"][0] > 2 * error:
        np.testing.assert_array_equal(values["keep_indices"][0], expected)
    else:  # two tokens nearer than float32's error: only those two may be exchanged
        assert len(set(values["keep_indices"][0].tolist()) & set(expected.tolist())) >= keep - 1
    assert values["kept_features"].tobytes() == features[0, values["keep_indices"][0]].tobytes()


@variants
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 2**32 - 1))
def test_function_equals_reference(variant: dict[str, Any], seed: int) -> None:
    features = decaying(seed)
    expected = select("svdprune", features, **variant)
    details = expected.details
    # What float32 cannot promise: a rank at the threshold, a space without a gap behind it, tokens of like leverage.
    assume(details["rank_margin"][0] > 1e-5)
    assume(variant.get("rank") == TOKENS or details["gap_margin"][0] > 1e-4)
    assume(details["cut_margin"][0] > 1e-4)
    found = op(**variant)(features=features)
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    assert found["kept_features"].tobytes() == expected.kept_features.tobytes()
    assert found["rank"] == details["rank"]
    np.testing.assert_allclose(found["energy"], details["energy"], atol=1e-5)
    if variant.get("rank", 0) <= WIDTH:  # beyond the features' own rank, directions are undefined
        np.testing.assert_allclose(found["leverages"], details["leverages"], atol=2e-5)
    if variant.get("mode") == "leverage":
        assert found["count"] == details["count"]
        np.testing.assert_allclose(found["leverage"], details["leverage"], atol=1e-4)


@variants
def test_invariants(variant: dict[str, Any]) -> None:
    features = decaying(5).astype(np.float64)
    found = select("svdprune", features, **variant)
    leverages, rank = found.details["leverages"][0], int(found.details["rank"][0])
    assert leverages.sum() == pytest.approx(1)
    assert leverages.min() >= 0
    assert leverages.max() <= 1 / rank + 1e-12
    if rank == TOKENS:
        np.testing.assert_allclose(leverages, 1 / TOKENS)
        return
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    for same in (features @ turn, features * 1e6, features * -1e-6):
        other = select("svdprune", same, **variant)
        np.testing.assert_allclose(other.details["leverages"][0], leverages, atol=1e-9)
        np.testing.assert_array_equal(other.keep_indices, found.keep_indices)
    order = np.random.default_rng(1).permutation(TOKENS)
    moved = select("svdprune", features[:, order], **variant).keep_indices[0]
    assert {int(order[index]) for index in moved} == set(found.keep_indices[0].tolist())


def test_a_token_apart_has_the_largest_leverage_and_duplicates_share_theirs() -> None:
    x = decaying(7)[0].astype(np.float64)
    x[:, 0], x[9] = 0, 0
    x[9, 0] = 50.0
    x[20] = x[4]
    found = select("svdprune", x[None], keep=4, rank=5, center="none")
    leverages = found.details["leverages"][0]
    assert leverages[9] == pytest.approx(1 / 5)
    assert leverages[4] == pytest.approx(leverages[20])
    assert 9 in found.keep_indices[0]
    assert 9 in op(keep=4, rank=5, center="none")(features=x[None].astype(np.float32))["keep_indices"][0]


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9, 1.0])
def test_mode_leverage_is_the_smallest_prefix(target: float) -> None:
    features, keep = decaying(11), 18
    request = {"keep": keep, "mode": "leverage", "leverage": target}
    found = select("svdprune", features, **request)
    leverages, count = found.details["leverages"][0], int(found.details["count"][0])
    order = np.argsort(-leverages, kind="stable")
    sums = np.cumsum(leverages[order])
    assert count == min(max(int(np.searchsorted(sums, target)) + 1, 4), keep)
    assert found.keep_indices[0, :count].tolist() == sorted(order[:count].tolist())
    assert found.keep_indices[0, count:].tolist() == sorted(order[count:keep].tolist())
    assert found.details["leverage"][0] == pytest.approx(sums[count - 1])
    by_onnx = op(**request)(features=features)
    assert by_onnx["count"].tolist() == [count]
    np.testing.assert_array_equal(by_onnx["keep_indices"], found.keep_indices)


def test_the_bound_is_used_where_the_energy_needs_more() -> None:
    features = decaying(3, base=1.02)
    found = select("svdprune", features, keep=8, rank_bound=6)
    assert int(found.details["rank"][0]) == 6
    assert found.details["energy"][0] < 0.9
    by_onnx = op(keep=8, rank_bound=6)(features=features)
    assert by_onnx["rank"].tolist() == [6]
    np.testing.assert_allclose(by_onnx["energy"], found.details["energy"], atol=1e-5)


HOSTILE = ["equal", "zero", "rank1", "large", "tiny", "repeated", "one token", "nan", "inf"]


def hostile(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = (TOKENS, WIDTH)
    values = {
        "equal": np.full(shape, 0.3),
        "zero": np.zeros(shape),
        "rank1": rng.standard_normal((TOKENS, 1)) * rng.standard_normal((1, WIDTH)),
        "large": rng.standard_normal(shape) * 1e30,
        "tiny": rng.standard_normal(shape) * 1e-38,
        "repeated": np.repeat(rng.standard_normal((10, WIDTH)), 3, axis=0),
        "one token": np.eye(TOKENS)[4][:, None] * rng.standard_normal((1, WIDTH)),
        "nan": np.where(rng.random(shape) < 0.1, np.nan, rng.standard_normal(shape)),
        "inf": np.where(rng.random(shape) < 0.1, np.inf, rng.standard_normal(shape)),
    }
    return values[kind].astype(np.float32)[None]


@pytest.mark.filterwarnings("error")
@variants
def test_hostile_inputs_give_a_valid_selection(variant: dict[str, Any]) -> None:
    for kind in HOSTILE:
        features, keep = hostile(kind), variant["keep"]
        found = op(**variant)(features=features)
        check_valid(found["keep_indices"], keep)
        if "mode" in variant:
            assert min(4, keep) <= int(found["count"][0]) <= keep
        else:
            check_raster(found["keep_indices"])
        if kind not in {"nan", "inf"}:
            check_valid(select("svdprune", features, **variant).keep_indices, keep)


def test_an_image_does_not_depend_on_its_batch() -> None:
    features = np.concatenate([decaying(1), decaying(2), decaying(3) * np.nan])
    together = op(batch=3, keep=8)(features=features)
    for image in range(2):
        alone = op(keep=8)(features=features[image : image + 1])
        for name in ("keep_indices", "rank", "energy", "leverages"):
            np.testing.assert_array_equal(together[name][image], alone[name][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": 1.5}, r"energy=1\.5 is not allowed; give a number above 0, at most 1"),
        ({"energy": 0}, "a number above 0"),
        ({"leverage": 2, "mode": "leverage"}, "leverage=2 is not allowed"),
        ({"leverage": 0.7}, r"no meaning in mode budget; give mode=leverage"),
        ({"rank": 31}, r"rank=31 is not allowed; give a whole number from 1 to 30 \(patches\)"),
        ({"rank_bound": 31}, "rank_bound=31 is not allowed"),
        ({"rank": 5, "energy": 0.5}, "exclude each other; give one"),
        ({"rank": 5, "rank_bound": 6}, "no meaning for a fixed rank; leave it out"),
        ({"keep": 31}, r"keep=31 .* from 1 to 30 \(patches\)"),
        ({"keep": 0}, "from 1 to 30"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], message: str) -> None:
    request = {"keep": 8, **change}
    with pytest.raises(UsageError, match=message):
        op_model("svdprune", tokens=TOKENS, width=WIDTH, **request)
    with pytest.raises(UsageError, match=message):
        select("svdprune", decaying(1), **request)


def plan(keep: int = 8, grid: tuple[int, int] = (5, 6), **options: Any) -> Schedule:
    return METHOD.plan(make_options(METHOD, options), ModelShape(grid, layers=32), keep)


def said(keep: int = 8, **options: Any) -> str:
    return " / ".join(plan(keep, **options).remarks)


def test_remarks_say_the_bound_and_where_the_ranking_is_noise() -> None:
    assert "computes 28 directions" in said()  # 30 patches, centred
    assert "computes 29 directions" in said(center="none")
    assert "computes 7 directions" in said(rank_bound=7)
    assert "directions; where" not in said(rank=7)
    for noisy in ({"rank": 30}, {"rank": 29}, {"rank": 30, "center": "none"}):
        assert "the ranking of the tokens is noise" in said(**noisy)
    for sound in ({}, {"rank": 28}, {"rank": 29, "center": "none"}):
        assert "noise" not in said(**sound)
    assert "common mean" in said(center="none")
    assert "common mean" not in said()
    assert "between 4 and 8 tokens" in said(mode="leverage")


@pytest.mark.parametrize(
    ("keep", "options", "fewest"),
    [(8, {}, 3), (9, {}, 4), (16, {}, 4), (1, {}, 2), (8, {"center": "none"}, 4), (16, {"mode": "leverage"}, 4)],
)
def test_too_few_directions_for_the_budget_are_said(keep: int, options: dict[str, Any], fewest: int) -> None:
    """k directions have 2^k sides; uncentred, all tokens are on one side of the first."""
    told = f"it takes {fewest} directions for {keep} tokens to differ in the sides they are on"

    def limits(**further: Any) -> list[Limit]:
        return [each for each in plan(keep, **{**options, **further}).limits if each.report == "rank"]

    few, most = limits()
    assert few.least == fewest
    assert told in few.warning
    assert most.most == (29 if options.get("center") == "none" else 28)
    # What is the same for every image is said once, by the build.
    assert told not in said(keep=keep, **options)
    assert told not in said(keep=keep, rank=fewest, **options)
    assert f"rank is {fewest - 1}: {told}" in said(keep=keep, rank=fewest - 1, **options)
    assert limits(rank=fewest - 1) == []
    assert f"rank_bound is {fewest - 1}: {told}" in said(keep=keep, rank_bound=fewest - 1, **options)
    assert limits(rank_bound=fewest - 1)[0].least == fewest - 1


@pytest.mark.parametrize("form", ["reference", "function"])
def test_a_common_mean_leaves_the_default_as_it_is_and_makes_uncentred_directions_few(form: str) -> None:
    features = decaying(13)
    moved = features + 3 * np.random.default_rng(2).standard_normal(WIDTH).astype(np.float32)

    def rank_and_choice(given_: np.ndarray, **options: Any) -> tuple[int, list[int]]:
        if form == "function":
            found = op(keep=8, **options)(features=given_)
            return int(found["rank"][0]), found["keep_indices"][0].tolist()
        selection = select("svdprune", given_, keep=8, **options)
        return int(selection.details["rank"][0]), selection.keep_indices[0].tolist()

    rank, chosen = rank_and_choice(features)
    assert rank > 3
    assert rank_and_choice(moved) == (rank, chosen)
    assert rank_and_choice(moved, center="none")[0] == 1


def test_variance_of_one_token_alone_is_reported_as_rank_1() -> None:
    """A case that centring cannot mend: the report that the limit is on says it."""
    features = decaying(17)
    features[0, 11] *= 1e3
    few = plan().limits[0]
    assert few.least is not None
    for rank in (select("svdprune", features, keep=8).details["rank"][0], op(keep=8)(features=features)["rank"][0]):
        assert rank == 1 < few.least


def test_the_usual_bound_is_what_is_promised_to_be_exact() -> None:
    for grid, bound in {(24, 24): 64, (8, 9): 64, (8, 8): 62, (2, 2): 2, (1, 2): 1, (1, 1): 1}.items():
        made = plan(1, grid)
        assert made.settings["rank_bound"] == made.first.op.settings()["rank_bound"] == bound


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    model = op_model("svdprune", tokens=TOKENS, width=WIDTH, **variant)
    onnx.checker.check_model(model, full_check=True)
    (node,), (function,) = model.graph.node, model.functions
    assert (node.op_type, function.name) == ("VtxSVDPrune", "VtxSVDPrune")
    reports = ["rank", "energy", *(["count", "leverage"] if "mode" in variant else [])]
    assert list(node.output) == ["kept_features", "keep_indices", *reports]
    values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert set(values) == set(function.attribute)
    most = TOKENS - 1 if variant.get("center") == "none" else TOKENS - 2  # the largest rank that is no noise
    assert values["rank_bound"] == (variant.get("rank") or variant.get("rank_bound", most))
