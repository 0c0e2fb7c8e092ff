"""DivPrune: the authors' vectors, the ONNX function against the reference, and what both hold on any input."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from greedy_cases import HOSTILE, TOKENS, WIDTH, check_valid, hostile, random_features
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pruning_cases import run_stock

from vtexport.errors import UsageError
from vtexport.pruning import diagnostic_model, op_model, select

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BUDGETS = [1, 2, 12, 30]


@functools.cache
def op(batch: int = 1, **variant: Any) -> Any:
    return run_stock(diagnostic_model("divprune", tokens=TOKENS, width=WIDTH, batch=batch, **variant))


@pytest.fixture(params=[(seed, keep) for seed in (1, 2, 3) for keep in (32, 64, 128, 192)], ids=str)
def case(request: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, the authors' picks in order, and the margins of the picks."""
    seed, keep = request.param
    golden = np.load(GOLDEN / f"divprune_cdpruner_seed{seed}.npz")
    order, margin = golden[f"N{keep}_divprune_order"].astype(int), golden[f"N{keep}_divprune_step_margin"]
    assert margin.min() > 1e-6, "a pick within float32's rounding would need its alternative checked"
    return np.load(GOLDEN / f"features_seed{seed}.npz")["hidden"][None, 1:], order, margin


def test_numpy_reference(case: Any) -> None:
    features, order, margin = case
    found = select("divprune", features, keep=len(order))
    np.testing.assert_array_equal(found.details["order"], order[None])
    np.testing.assert_allclose(found.details["step_margin"][0], margin, atol=2e-6)  # of distances rounded to 2^-20
    np.testing.assert_array_equal(found.keep_indices, np.sort(order)[None])
    assert found.kept_features.dtype == np.float16
    assert found.kept_features.tobytes() == features[0, np.sort(order)].tobytes()
    assert found.merged is None


def test_torch_reference(case: Any) -> None:
    features, order, _ = case
    found = select("divprune", torch.from_numpy(features), keep=len(order))
    assert isinstance(found.keep_indices, torch.Tensor)
    np.testing.assert_array_equal(found.details["order"], order[None])
    assert torch.equal(found.kept_features[0], torch.from_numpy(features[0, np.sort(order)]))


def test_stock_onnx_runtime(case: Any) -> None:
    features, order, _ = case
    model = diagnostic_model("divprune", tokens=576, width=1024, keep=len(order), dtype="float16")
    found = run_stock(model)(features=features)
    np.testing.assert_array_equal(found["order"], order[None])
    np.testing.assert_array_equal(found["keep_indices"], np.sort(order)[None])
    assert found["kept_features"].tobytes() == features[0, np.sort(order)].tobytes()


@pytest.mark.parametrize("keep", BUDGETS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_function_equals_reference(keep: int, seed: int) -> None:
    features = random_features(seed)
    expected = select("divprune", features, keep=keep)
    # The two nearest neighbours of each other are equally far apart, so the first pick may be a tie, and is a tie to
    # both forms; any other margin within float32's rounding has no answer to promise.
    margins = expected.details["step_margin"][0]
    assume(((margins == 0) | (margins > 1e-5)).all())
    found = op(keep=keep)(features=features)
    np.testing.assert_array_equal(found["order"], expected.details["order"])
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    assert found["kept_features"].tobytes() == expected.kept_features.tobytes()


def test_every_pick_is_the_farthest() -> None:
    """By the definition, with plain loops."""
    x = random_features(11)[0].astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    order = select("divprune", x[None], keep=12).details["order"][0].tolist()
    nearest = [sorted(distance[:, token])[1] for token in range(TOKENS)]
    assert order[0] == int(np.argmax(nearest))
    for step in range(1, 12):
        left = [token for token in range(TOKENS) if token not in order[:step]]
        assert order[step] == max(left, key=lambda token: distance[token, order[:step]].min())


def test_a_larger_budget_begins_with_the_smaller_one() -> None:
    features = random_features(12)
    few, many = (op(keep=keep)(features=features)["order"][0].tolist() for keep in (8, 20))
    assert many[:8] == few


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("keep", BUDGETS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_inputs_give_a_valid_selection(keep: int, kind: str) -> None:
    check_valid(op(keep=keep)(features=hostile(kind))["keep_indices"], keep)
    check_valid(select("divprune", hostile(kind), keep=keep).keep_indices, keep)


@pytest.mark.parametrize("kind", ["equal", "zero"])
def test_equal_tokens_go_by_index(kind: str) -> None:
    assert op(keep=8)(features=hostile(kind))["keep_indices"].tolist() == [list(range(8))]
    assert select("divprune", hostile(kind), keep=8).keep_indices.tolist() == [list(range(8))]


def test_no_duplicate_before_every_other_token() -> None:
    kept = op(keep=10)(features=hostile("repeated"))["keep_indices"][0]
    assert (kept // 3).tolist() == list(range(10))


@pytest.mark.parametrize("keep", BUDGETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_gives_a_valid_selection_in_onnx(keep: int, value: float) -> None:
    features = random_features(2)
    features[0, 3:9, 2] = value
    check_valid(op(keep=keep)(features=features)["keep_indices"], keep)
    features[:] = value
    check_valid(op(keep=keep)(features=features)["keep_indices"], keep)


def test_an_image_does_not_depend_on_its_batch() -> None:
    features = random_features(3, batch=3)
    features[2] = np.nan
    together = op(batch=3, keep=12)(features=features)
    for image in range(2):
        alone = op(keep=12)(features=features[image : image + 1])
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][image], value[0])
    both = select("divprune", features[:2], keep=12)
    np.testing.assert_array_equal(together["keep_indices"][:2], both.keep_indices)


def test_permuted_tokens_permute_the_selection() -> None:
    """Images whose first pick is no tie, which it is when two tokens are each other's nearest neighbours."""
    features, moved = random_features(5), np.random.default_rng(5).permutation(TOKENS)
    assert select("divprune", features, keep=12).details["step_margin"].min() > 1e-5
    plain = op(keep=12)(features=features)["keep_indices"][0]
    permuted = op(keep=12)(features=features[:, moved])["keep_indices"][0]
    assert set(moved[permuted]) == set(plain)


def test_scaled_rows_change_nothing() -> None:
    features = random_features(6)
    scaled = features * (0.5 + np.random.default_rng(7).random((1, TOKENS, 1), np.float32))
    np.testing.assert_array_equal(*(op(keep=12)(features=each)["order"] for each in (features, scaled)))


@pytest.mark.parametrize("keep", [0, 31, None])
def test_impossible_budgets_are_refused(keep: Any) -> None:
    with pytest.raises(UsageError, match="from 1 to 30"):
        op_model("divprune", tokens=TOKENS, width=WIDTH, keep=keep)
    with pytest.raises(UsageError, match="from 1 to 30"):
        select("divprune", random_features(0), keep=keep)


def test_model_is_well_formed() -> None:
    model = op_model("divprune", tokens=TOKENS, width=WIDTH, keep=12)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.input] == ["features"]
    assert [each.name for each in model.graph.output] == ["kept_features", "keep_indices"]
    assert model.functions[0].name == "VtxDivPrune"
