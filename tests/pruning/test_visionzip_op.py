"""VisionZip: the authors' vectors, the ONNX function against the reference, and what both hold on any input."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pruning_cases import run_stock

from vtexport.errors import UsageError
from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOKENS, WIDTH, HEADS, HEAD_DIM = 30, 24, 3, 8
VARIANTS: list[dict[str, Any]] = [
    {"keep": 12},
    {"keep": 12, "contextual": 5},
    {"keep": 8, "contextual": 7},  # CLS and contextual tokens alone
    {"keep": 2},
    {"keep": 31},  # every token is kept and none is left to merge
    {"keep": 30, "contextual": 9},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))


@functools.cache
def op(batch: int = 1, dtype: str = "float32", **variant: Any) -> Any:
    sizes = {"tokens": TOKENS, "width": WIDTH, "heads": HEADS, "head_dim": HEAD_DIM}
    return run_stock(diagnostic_model("visionzip", batch=batch, dtype=dtype, **sizes, **variant))


def random_inputs(seed: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "features": rng.standard_normal((batch, TOKENS + 1, WIDTH)).astype(np.float32),
        "scores": rng.random((batch, TOKENS), np.float32),
        "keys": rng.standard_normal((batch, TOKENS, HEADS, HEAD_DIM)).astype(np.float32),
    }


def check_valid(found: dict[str, Any], keep: int, tokens: int = TOKENS) -> None:
    for image in found["keep_indices"].tolist():
        assert image[0] == -1
        assert len(image) == len(set(image)) == keep
        assert set(image[1:]) <= set(range(tokens))


@pytest.fixture(params=[(seed, case) for seed in (1, 2, 3) for case in ((54, 10), (108, 20), (162, 30))], ids=str)
def case(request: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs, and the authors' results by their names without the prefix."""
    seed, (dominant, contextual) = request.param
    file, golden = np.load(GOLDEN / f"features_seed{seed}.npz"), np.load(GOLDEN / f"visionzip_seed{seed}.npz")
    inputs = {
        "features": file["hidden"][None],
        "scores": file["cls_attention"].sum(0)[None],
        "keys": file["keys"][1:].reshape(1, 576, 16, 64).astype(np.float32),
    }
    prefix = f"d{dominant}c{contextual}_"
    return inputs, {name.removeprefix(prefix): golden[name] for name in golden if name.startswith(prefix)}


def agrees(found: dict[str, Any], inputs: dict[str, np.ndarray], golden: dict[str, np.ndarray]) -> None:
    # float32 is far more exact than these margins: no choice may differ.
    assert golden["dominant_margin"] > 1e-5
    assert golden["assign_margin"] > 1e-5
    dominant, targets = golden["dominant"].astype(int), golden["contextual_targets"].astype(int)
    np.testing.assert_array_equal(found["keep_indices"], [[-1, *dominant, *targets]])
    assigned = np.full((1, 576), -1)
    assigned[0, golden["assigned_from"]] = golden["assigned_to"]
    np.testing.assert_array_equal(found["assigned"], assigned)
    rows = 1 + len(dominant)
    features = np.asarray(found["kept_features"])
    assert features.dtype == np.float16
    assert features[0, :rows].tobytes() == inputs["features"][0, [0, *(dominant + 1)]].tobytes()
    # Both round to float16; the last bit may differ where the float32 sums were rounded the other way.
    np.testing.assert_allclose(features[0, rows:], golden["contextual"], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found["merged"], [[False] * rows + [True] * len(targets)])


def test_numpy_reference(case: Any) -> None:
    inputs, golden = case
    found = select("visionzip", **inputs, keep=1 + len(golden["dominant"]) + len(golden["contextual"]))
    agrees({**vars(found), **found.details}, inputs, golden)
    np.testing.assert_allclose(found.details["dominant_margin"], golden["dominant_margin"], atol=1e-7)
    np.testing.assert_allclose(found.details["assign_margin"], golden["assign_margin"], atol=1e-6)


def test_torch_reference(case: Any) -> None:
    inputs, golden = case
    tensors = {name: torch.from_numpy(each) for name, each in inputs.items()}
    found = select("visionzip", **tensors, keep=1 + len(golden["dominant"]) + len(golden["contextual"]))
    assert isinstance(found.kept_features, torch.Tensor)
    assert isinstance(found.merged, torch.Tensor)
    agrees({**vars(found), **found.details}, inputs, golden)


def test_stock_onnx_runtime(case: Any) -> None:
    inputs, golden = case
    keep = 1 + len(golden["dominant"]) + len(golden["contextual"])
    found = run_stock(diagnostic_model("visionzip", tokens=576, width=1024, keep=keep, dtype="float16"))(**inputs)
    agrees(found, inputs, golden)


@variants
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_function_equals_reference(variant: dict[str, Any], seed: int, tied: bool) -> None:
    named = random_inputs(seed)
    if tied:
        named["scores"] = np.floor(4 * named["scores"]) / 4
    expected = select("visionzip", **named, **variant)
    assume(expected.details["assign_margin"][0] > 1e-5)
    found = op(**variant)(**named)
    np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
    np.testing.assert_array_equal(found["assigned"], expected.details["assigned"])
    np.testing.assert_array_equal(found["merged"], expected.merged)
    np.testing.assert_allclose(found["kept_features"], expected.kept_features, atol=1e-5)
    copies = ~found["merged"][0]
    rows = named["features"][0, found["keep_indices"][0, copies] + 1]
    assert found["kept_features"][0, copies].tobytes() == rows.tobytes()
    assert expected.kept_features[0, copies].tobytes() == rows.tobytes()


@pytest.mark.filterwarnings("error")
@variants
@pytest.mark.parametrize("features", [0.0, 0.3, 1e30, 1e-38])
@pytest.mark.parametrize("keys", ["equal", "zero", "rank 1", "one", "large"])
def test_hostile_inputs_give_a_valid_selection(variant: dict[str, Any], features: float, keys: str) -> None:
    shape = (1, TOKENS, HEADS, HEAD_DIM)
    rng = np.random.default_rng(3)
    made = {
        "equal": np.full(shape, 0.3),
        "zero": np.zeros(shape),
        "rank 1": rng.standard_normal((1, TOKENS, 1, 1)) * np.ones(shape),
        "one": np.eye(TOKENS)[4][None, :, None, None] * np.ones(shape),
        "large": 1e30 * rng.standard_normal(shape),
    }[keys].astype(np.float32)
    named = {"features": np.full((1, TOKENS + 1, WIDTH), features, np.float32), "keys": made}
    for scores in (np.zeros(TOKENS), -rng.random(TOKENS), np.full(TOKENS, 1e-45), np.eye(TOKENS)[3]):
        given_scores = scores.astype(np.float32)[None]
        found = op(**variant)(**named, scores=given_scores)
        expected = select("visionzip", **named, scores=given_scores, **variant)
        check_valid(found, variant["keep"])
        check_valid(vars(expected), variant["keep"])
        if keys != "large":  # whose squares are beyond float32
            np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)


@variants
def test_nan_gives_a_valid_selection_in_onnx(variant: dict[str, Any]) -> None:
    named = random_inputs(2)
    named["features"][0, 3:9] = np.nan
    named["scores"][0, ::2] = np.nan
    named["keys"][0, 5:] = np.nan
    check_valid(op(**variant)(**named), variant["keep"])
    named["scores"][:] = np.nan
    check_valid(op(**variant)(**named), variant["keep"])


@variants
def test_an_image_does_not_depend_on_its_batch(variant: dict[str, Any]) -> None:
    named = random_inputs(5, batch=3)
    named["features"][2], named["keys"][2] = np.nan, np.nan
    together = op(batch=3, **variant)(**named)
    for image in range(2):
        alone = op(**variant)(**{name: each[image : image + 1] for name, each in named.items()})
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][image], value[0])


def test_batched_reference() -> None:
    named = random_inputs(6, batch=2)
    together = select("visionzip", **named, keep=12)
    for image in range(2):
        alone = select("visionzip", **{name: each[image : image + 1] for name, each in named.items()}, keep=12)
        np.testing.assert_array_equal(together.keep_indices[image], alone.keep_indices[0])
        np.testing.assert_array_equal(together.kept_features[image], alone.kept_features[0])
        np.testing.assert_array_equal(together.merged[image], alone.merged[0])


def test_ties_go_to_the_lower_index() -> None:
    named = random_inputs(7)
    named["scores"][:], named["keys"][:] = 0.5, 1.0
    found = op(keep=12, contextual=2)(**named)
    assert found["keep_indices"].tolist() == [[-1, *range(9), 9, 19]]
    assert set(found["assigned"][0, 10:19].tolist()) == {0}
    assert found["assigned"][0, 20:].tolist() == [0] * 10
    assert found["merged"][0].tolist() == [False] * 10 + [True, False]  # nothing joined the second target


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30), (2, 1), (3, 1), (16, 3), (577, 90)])
def test_default_share_of_contextual_tokens(keep: int, contextual: int) -> None:
    method = get_method("visionzip")
    schedule = method.plan(make_options(method, {}), ModelShape((24, 24), layers=32), keep)
    assert schedule.settings["contextual"] == schedule.first.op.settings()["contextual"] == contextual


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"keep": 1}, "keep=1 .* from 2 to 31"),
        ({"keep": 32}, "from 2 to 31"),
        ({"keep": 8, "contextual": 8}, "contextual=8 .* from 1 to 7"),
        ({"keep": 8, "contextual": 0}, "contextual=0"),
    ],
)
def test_impossible_requests_are_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        op_model("visionzip", tokens=TOKENS, width=WIDTH, **request_)
    with pytest.raises(UsageError, match=message):
        select("visionzip", **random_inputs(0), **request_)


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    model = op_model("visionzip", tokens=TOKENS, width=WIDTH, heads=HEADS, head_dim=HEAD_DIM, **variant)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.input] == ["features", "scores", "keys"]
    assert [each.name for each in model.graph.output] == ["kept_features", "keep_indices", "merged"]
    values = {each.name: onnx.helper.get_attribute_value(each) for each in model.graph.node[0].attribute}
    assert set(values) == {"plugin_namespace", "plugin_version", "keep", "contextual"}


def test_the_earlier_name_of_head_dim() -> None:
    sizes = {"tokens": TOKENS, "width": WIDTH, "heads": HEADS, "keep": 12}
    assert op_model("visionzip", head_width=5, **sizes) == op_model("visionzip", head_dim=5, **sizes)
    with pytest.raises(UsageError, match="head_width=5 is the earlier name of head_dim=4; leave it out"):
        op_model("visionzip", head_width=5, head_dim=4, **sizes)
