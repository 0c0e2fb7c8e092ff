"""ViTCoP's stage I against the authors' code: kept tokens and clusters, index for index, in all three forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = [
    (file.stem, name.removesuffix("_params"))
    for file in sorted(GOLDEN.glob("vitcop_seed*.npz"))
    for name in np.load(file).files
    if name.endswith("_params")
]


class Case:
    """One golden case: its inputs [1, ...] and the expected values."""

    def __init__(self, file: str, name: str):
        stored = np.load(GOLDEN / f"{file}.npz")
        prefix = f"{name}_"
        self.expected = {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}
        seed = file.removeprefix("vitcop_seed").split("_")[0]
        inputs = np.load(GOLDEN / f"features_seed{seed}.npz")
        _, _, share, factor = self.expected["params"]
        keys = inputs["keys"][None, 1:].astype(np.float32) * np.float32(factor)
        self.features, self.scores = inputs["hidden"][None, 1:], inputs["cls_attention"].sum(0)[None]
        self.keys = keys.reshape(1, 576, 16, 64)
        self.keep = len(self.expected["stage1_indices"])
        self.request = {"keep": self.keep, "clusters": True, "cluster_share": float(share)}


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: Any) -> Case:
    return Case(*request.param)


def partition(labels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(labels == label)) for label in set(labels.tolist())}


def agrees(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    """Infinite gammas tie, and then the authors' unstable sort numbers their clusters in any order."""
    if expected["vic_n_inf_delta"] > 1:
        assert partition(found["labels"][0]) == partition(expected["labels"])
        assert set(found["centers"][0].tolist()) == set(expected["centers"].tolist())
    else:
        np.testing.assert_array_equal(found["labels"][0], expected["labels"])
        np.testing.assert_array_equal(found["centers"][0], expected["centers"])
    np.testing.assert_array_equal(found["parent"][0], expected["parent"])
    np.testing.assert_allclose(found["density"][0], expected["density"], rtol=1e-6)
    np.testing.assert_allclose(found["delta"][0], expected["delta"], rtol=2e-6)


def test_all_cases_are_here() -> None:
    assert len(CASES) == 11
    assert {"ties", "kgtr", "64", "128", "192"} == {name for _, name in CASES}
    assert sum((Case(*each).expected["labels"] < 0).any() for each in CASES) == 2, "rings without a centre"


def test_numpy_reference(case: Case) -> None:
    found = select("vitcop", case.features, case.scores, keys=case.keys, **case.request)
    kept = case.expected["stage1_indices"].astype(int)
    np.testing.assert_array_equal(found.keep_indices, [kept])
    assert found.kept_features.tobytes() == case.features[:, kept].tobytes()
    agrees(found.details, case.expected)
    np.testing.assert_allclose(found.details["score_margin"], case.expected["stage1_margin"], rtol=1e-3)


def test_torch_reference(case: Case) -> None:
    named = {"features": case.features, "scores": case.scores, "keys": case.keys}
    found = select("vitcop", **{name: torch.from_numpy(each) for name, each in named.items()}, **case.request)
    np.testing.assert_array_equal(found.keep_indices[0], case.expected["stage1_indices"])
    agrees({name: value.numpy() for name, value in found.details.items()}, case.expected)


def test_stock_onnx_runtime(case: Case, stock: Any) -> None:
    sizes = {"tokens": 576, "width": 1024, "dtype": "float16"}
    named = {"features": case.features, "scores": case.scores}
    kept = case.expected["stage1_indices"].astype(int)
    found = stock(diagnostic_model("vitcop", **sizes, **case.request))(**named, keys=case.keys)
    agrees(found, case.expected)
    alone = stock(op_model("vitcop", **sizes, keep=case.keep))(**named)
    assert set(alone) == {"kept_features", "keep_indices"}
    for each in (found, alone):
        np.testing.assert_array_equal(each["keep_indices"], [kept])
        assert each["kept_features"].tobytes() == case.features[:, kept].tobytes()


@pytest.mark.parametrize(("name", "count"), [("64", 20), ("128", 34), ("192", 51)])
def test_the_default_number_of_clusters_is_the_presets(name: str, count: int) -> None:
    case = Case("vitcop_seed1_hkv8", name)
    method = get_method("vitcop")
    placed = method.first_op(make_options(method, {"clusters": True}), ModelShape((24, 24), layers=32), case.keep)
    assert placed.op.settings()["cluster_count"] == count == len(case.expected["centers"])
