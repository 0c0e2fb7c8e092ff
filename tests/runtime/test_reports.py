"""Reports of a method on an image: with the answer, as warnings, and as the number of rows that are used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtexport.build import build
from vtexport.bundle.manifest import ReportLimit
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.export.plan import bundle_shape, make_plans
from vtexport.pruning import get_method, make_options, select
from vtexport.runtime.answers import reported
from vtexport.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SVD-Prune with a bound of two directions, and in mode leverage."""
    target = tmp_path_factory.mktemp("reports") / "tiny"
    given = {"method": "svdprune", "keep": 16}
    build(str(tiny_checkpoint), target, **given, options={"rank_bound": 2, "energy": 0.9999})
    return build(
        str(tiny_checkpoint), target, **given, options={"rank": 12, "mode": "leverage", "leverage": 0.3}
    ).folder


def test_an_energy_that_is_not_reached_is_said(bundle: Path, photo: Path, capsys: Any) -> None:
    plan = open_bundle(bundle).manifest.plans[0]
    visual = Pipeline.open(bundle, plan.name).encode(photo)
    assert set(visual.reports) == {"rank", "energy"}
    assert visual.reports["rank"] == 2
    assert 0 < visual.reports["energy"] < 0.9999
    (warning,) = visual.warnings
    assert "energy is " in warning
    assert "less than the 0.9999 asked for, which needs more than 2 directions" in warning

    ask = ["run", str(bundle), "--plan", plan.name, "--image", str(photo), "--prompt", "x", "--max-new-tokens", "2"]
    assert main(ask) == 0
    assert f"warning: {warning}" in capsys.readouterr().err
    assert main([*ask, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["warnings"] == [warning]
    assert json.loads(told.out)["reports"] == visual.reports


def test_directions_too_few_for_the_budget_are_said(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    (few,) = [each for each in manifest.plans[0].reports["rank"] if each.least is not None]
    assert few.least == 2  # the plan computes no more: the build has said that 16 tokens take 4
    method = get_method("svdprune")
    (planned,) = make_plans(method, [16], make_options(method, {}), bundle_shape(manifest))
    plan = manifest.plans[0]
    plan.reports = {
        "rank": [
            ReportLimit(warning=each.warning, least=each.least, most=each.most) for each in planned.reports["rank"]
        ]
    }
    for rank, warned in ((1, True), (3, True), (4, False), (30, False)):
        values, warnings = reported(plan, {"rank": np.array([rank])})
        assert values == {"rank": rank}
        told = f"{plan.name}: rank is {rank}: it takes 4 directions for 16 tokens to differ in the sides they are on"
        assert [each.split(";")[0] for each in warnings] == ([told] if warned else [])


def test_mode_leverage_uses_the_set_alone(bundle: Path, photo: Path) -> None:
    plan = open_bundle(bundle).manifest.plans[1]
    pipeline = Pipeline.open(bundle, plan.name)
    features = pipeline.stages.vision(pipeline.stages.preprocess(photo)).outputs["features"].numpy()[0, -64:]
    expected = select("svdprune", features[None], keep=16, rank=12, mode="leverage", leverage=0.3)
    count = int(expected.details["count"][0])
    assert 4 <= count < 16
    visual = pipeline.encode(photo)
    np.testing.assert_array_equal(visual.keep_indices, expected.keep_indices[0, :count])
    assert visual.embeddings.shape[1] == visual.positions.shape[1] == visual.position_span == count
    assert visual.reports["count"] == count
    assert visual.warnings == []
    answer = pipeline.generate(visual, "What is this?", max_new_tokens=3)
    assert answer.visual_tokens == count
    assert answer.reports == visual.reports


@pytest.mark.parametrize(
    ("value", "least", "most", "warned"),
    [(1, 2, None, True), (2, 2, 4, False), (4, 2, 4, False), (5, None, 4, True), (math.nan, 0, None, True)],
)
def test_limits(bundle: Path, value: float, least: float | None, most: float | None, warned: bool) -> None:
    plan = open_bundle(bundle).manifest.plans[0]
    plan.reports = {"x": [ReportLimit(warning="mind", least=least, most=most)]}
    values, warnings = reported(plan, {"x": np.array([value])})
    assert list(values) == ["x"]
    assert warnings == ([f"{plan.name}: x is {value:.4g}: mind"] if warned else [])
