from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vtexport.errors import InputError, UsageError
from vtexport.pruning import op_model, select

FEATURES = np.random.default_rng(0).standard_normal((2, 21, 8)).astype(np.float32)
SCORES = np.random.default_rng(1).random((2, 20), np.float32)


def poisoned(value: float) -> np.ndarray:
    bad = FEATURES.copy()
    bad[1, 4, 3] = value
    return bad


@pytest.mark.parametrize(
    ("features", "scores", "message"),
    [
        (FEATURES[0], SCORES, r"features has shape \(21, 8\)"),
        (FEATURES[:, :0], SCORES, "non-empty"),
        (FEATURES[:, :1], SCORES, "no patch"),
        (FEATURES, SCORES[:, :19], r"scores has shape \(2, 19\).*\(2, 20\)"),
        (FEATURES, SCORES[:1], r"\(2, 20\)"),
        (FEATURES, SCORES[0], "scores has shape"),
        (FEATURES, None, "needs scores"),
        (poisoned(np.nan), SCORES, "NaN"),
        (poisoned(np.inf), SCORES, "infinite"),
        (FEATURES, SCORES * np.nan, "scores holds NaN"),
        (FEATURES.astype(np.int32), SCORES, "int32"),
        (FEATURES.tolist(), SCORES, "list"),
        (FEATURES, torch.from_numpy(SCORES), "one kind"),
    ],
)
def test_bad_inputs_are_refused(features: Any, scores: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select("prunesid", features, scores, keep=8)


def test_unneeded_scores_are_refused() -> None:
    with pytest.raises(InputError, match="takes no scores"):
        select("prunesid", FEATURES, SCORES, keep=8, nms_score="abs_v")
    with pytest.raises(InputError, match="takes no scores"):
        select("none", FEATURES[:, 1:], SCORES, keep=None)


@pytest.mark.parametrize("keep", [3, 22, 0, -1, None, 8.0, True])
def test_impossible_budgets_are_refused(keep: Any) -> None:
    with pytest.raises(UsageError, match="from 4 to 21"):
        select("prunesid", FEATURES, SCORES, keep=keep)


@pytest.mark.parametrize("keep", [None, 20])
def test_none_keeps_every_patch(keep: int | None, stock: Any) -> None:
    found = select("none", FEATURES[:, 1:], keep=keep)
    np.testing.assert_array_equal(found.keep_indices, [list(range(20))] * 2)
    np.testing.assert_array_equal(found.kept_features, FEATURES[:, 1:])
    model = op_model("none", tokens=20, width=8, keep=keep, batch=2)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[0].op_type == model.functions[0].name == "VtxKeepAll"
    by_onnx = stock(model)(features=FEATURES[:, 1:])
    np.testing.assert_array_equal(by_onnx["keep_indices"], found.keep_indices)
    np.testing.assert_array_equal(by_onnx["kept_features"], found.kept_features)


def test_none_refuses_a_budget() -> None:
    with pytest.raises(UsageError, match=r"keep=8 .* all 20 patches"):
        select("none", FEATURES[:, 1:], keep=8)


def test_bfloat16_tensors() -> None:
    features = torch.from_numpy(FEATURES).bfloat16()
    found = select("prunesid", features, torch.from_numpy(SCORES), keep=8)
    assert found.kept_features.dtype == torch.bfloat16
    same = select("prunesid", features.float().numpy(), SCORES, keep=8)
    np.testing.assert_array_equal(found.keep_indices, same.keep_indices)


def test_ties_go_to_the_lower_index() -> None:
    found = select("prunesid", FEATURES, np.full_like(SCORES, 0.25), keep=8, threshold_scale=1e6, groups=1)
    np.testing.assert_array_equal(found.keep_indices, [[-1, *range(7)]] * 2)
