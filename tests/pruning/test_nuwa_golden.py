"""Nüwa's stage 1 against the authors' code: kept tokens, pillars, aggregated features and position ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = [(seed, target) for seed in (1, 2, 3) for target in (64, 128, 192)]


class Case:
    """One golden case: its inputs [1, ...] and the expected values."""

    def __init__(self, seed: int, target: int):
        stored = np.load(GOLDEN / f"nuwa_seed{seed}.npz")
        prefix = f"N{target}_"
        self.expected = {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}
        inputs = np.load(GOLDEN / f"features_seed{seed}.npz")
        self.inputs = {
            "features": inputs["hidden"][None, 1:],
            "scores": inputs["cls_attention"].sum(0)[None],
            "similarity_features": inputs["sim_features"][None].astype(np.float32),
        }
        self.keep = int(self.expected["k"])


@pytest.fixture(params=CASES, ids=lambda case: "seed{}-N{}".format(*case))
def case(request: Any) -> Case:
    return Case(*request.param)


def agrees(found: dict[str, Any], case: Case) -> None:
    expected, features = case.expected, case.inputs["features"]
    np.testing.assert_array_equal(found["keep_indices"], expected["indices"])
    pillar = expected["pillar"]
    np.testing.assert_array_equal(found["merged"], ~pillar)
    rows = found["kept_features"]
    assert rows.dtype == np.float16
    assert rows[pillar].tobytes() == features[0, expected["indices"][pillar]].tobytes()
    stored = expected["feature_rows"].astype(int)
    np.testing.assert_allclose(
        rows[:, stored].astype(np.float32), expected["features"].astype(np.float32), rtol=2e-3, atol=2e-3
    )


def test_numpy_reference(case: Case) -> None:
    found = select("nuwa", **case.inputs, keep=case.keep)
    agrees(vars(found), case)
    for ours, theirs in (("region_margin", "region_margin"), ("global_margin", "global_margin")):
        np.testing.assert_allclose(found.details[ours][0], case.expected[theirs], rtol=1e-3)


def test_torch_reference(case: Case) -> None:
    found = select("nuwa", **{name: torch.from_numpy(each) for name, each in case.inputs.items()}, keep=case.keep)
    assert found.merged is not None
    named = {"keep_indices": found.keep_indices, "kept_features": found.kept_features, "merged": found.merged}
    agrees({name: value.numpy() for name, value in named.items()}, case)


def test_stock_onnx_runtime(case: Case, stock: Any) -> None:
    model = op_model("nuwa", tokens=576, width=1024, keep=case.keep, dtype="float16")
    found = stock(model)(**case.inputs)
    assert set(found) == {"keep_indices", "kept_features", "merged"}
    agrees(found, case)


def test_the_batch_of_all_images(stock: Any) -> None:
    cases = [Case(seed, 64) for seed in (1, 2, 3)]
    named = {name: np.concatenate([case.inputs[name] for case in cases]) for name in cases[0].inputs}
    model = diagnostic_model("nuwa", tokens=576, width=1024, keep=112, dtype="float16", batch=3)
    for found in (stock(model)(**named), vars(select("nuwa", **named, keep=112))):
        for image, case in enumerate(cases):
            own = {name: found[name][image : image + 1] for name in ("keep_indices", "kept_features", "merged")}
            agrees(own, case)


def test_presets_and_positions(case: Case) -> None:
    method = get_method("nuwa")
    placed = method.first_op(make_options(method, {}), ModelShape((24, 24), layers=32), case.keep)
    assert placed.keep == case.keep
    settings = placed.op.settings()
    assert settings["top_n"] == case.expected["top_n"]
    assert (settings["distance"], settings["pillar_quantile"]) == (280, 0.55)
    # 35 tokens of text, the image's span of 576 positions, 20 tokens of text: what "original" positions promise.
    assert placed.positions == "original"
    ids = np.concatenate([np.arange(35), 35 + case.expected["indices"][0], 35 + 576 + np.arange(20)])
    np.testing.assert_array_equal(ids, case.expected["position_ids_prefill"])
