"""CDPruner: the authors' vectors, the ONNX function against the reference, and what both hold on any input."""

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

from vtexport.errors import InputError, UsageError
from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, op_model, select
from vtexport.pruning.ops.cdpruner import COARSE

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
JOINT = 16
VARIANTS: list[dict[str, Any]] = [
    {"relevance": "llm"},
    {"relevance": "llm", "negate": True, "theta": 0.6},
    {"relevance": "clip"},
    {"relevance": "clip", "theta": 0.8},
    {"relevance": "none"},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: "-".join(map(str, each.values())))
BUDGETS = [1, 12, 30]


@functools.cache
def op(batch: int = 1, keep: int = 12, **variant: Any) -> Any:
    joint = {"embedding_width": JOINT} if variant["relevance"] == "clip" else {}
    model = diagnostic_model("cdpruner", tokens=TOKENS, width=WIDTH, keep=keep, batch=batch, **joint, **variant)
    return run_stock(model)


def signals(variant: dict[str, Any], seed: int, batch: int = 1, text: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    width = {"llm": WIDTH, "clip": JOINT, "none": 0}[variant["relevance"]]
    named = {}
    if variant["relevance"] == "clip":
        named["image_embeds"] = rng.standard_normal((batch, TOKENS, width)).astype(np.float32)
    if width:
        named["text_embeds"] = rng.standard_normal((batch, text, width)).astype(np.float32)
    return named


@pytest.fixture(params=[(seed, keep) for seed in (1, 2, 3) for keep in (32, 64, 128, 192)], ids=str)
def case(request: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, the authors' selection, and the picks in order with their margins from a float64 run of their code."""
    seed, keep = request.param
    file, golden = np.load(GOLDEN / f"features_seed{seed}.npz"), np.load(GOLDEN / f"divprune_cdpruner_seed{seed}.npz")
    inputs = {
        "features": file["hidden"][None, 1:],
        "image_embeds": file["image_embeds"][None],
        "text_embeds": file["text_embeds"][None],
    }
    names = ("cdpruner_indices", "cdpruner_order_fp64", "cdpruner_step_margin")
    kept, order, margin = (golden[f"N{keep}_{name}"] for name in names)
    return inputs, kept.astype(int), order.astype(int), margin


def swaps_explain(found: np.ndarray, order: np.ndarray, margin: np.ndarray) -> bool:
    """True where float32 picked in the golden order, but for a pick with a margin below its error and what follows."""
    decided = int(np.argmax(margin < 1e-6)) if (margin < 1e-6).any() else len(order)
    return bool((found[:decided] == order[:decided]).all())


def test_numpy_reference(case: Any) -> None:
    inputs, kept, order, margin = case
    found = select("cdpruner", **inputs, keep=len(order), relevance="clip")
    np.testing.assert_array_equal(found.details["order"], order[None])
    np.testing.assert_allclose(found.details["step_margin"][0, 1:], margin[1:], atol=1e-7)
    assert found.details["step_margin"][0, 0] == pytest.approx(margin[0], abs=COARSE)
    np.testing.assert_array_equal(found.keep_indices, kept[None])
    assert found.kept_features.tobytes() == inputs["features"][0, kept].tobytes()


def test_torch_reference(case: Any) -> None:
    inputs, kept, order, _ = case
    tensors = {name: torch.from_numpy(each) for name, each in inputs.items()}
    found = select("cdpruner", **tensors, keep=len(order), relevance="clip")
    assert isinstance(found.keep_indices, torch.Tensor)
    np.testing.assert_array_equal(found.details["order"], order[None])
    assert torch.equal(found.kept_features[0], tensors["features"][0, kept])


def test_stock_onnx_runtime(case: Any) -> None:
    """One golden file has picks with a margin of 5e-7, which float32 may take in another order."""
    inputs, kept, order, margin = case
    request = {"tokens": 576, "width": 1024, "keep": len(order), "dtype": "float16", "relevance": "clip"}
    model = diagnostic_model("cdpruner", **request, embedding_width=256)
    given = {name: each if name == "features" else each.astype(np.float32) for name, each in inputs.items()}
    found = run_stock(model)(**given)
    assert swaps_explain(found["order"][0], order, margin)
    np.testing.assert_array_equal(found["keep_indices"], kept[None])  # the authors' float32 code has the same set
    assert found["kept_features"].tobytes() == inputs["features"][0, kept].tobytes()


@variants
@pytest.mark.parametrize("keep", BUDGETS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), text=st.integers(1, 9))
def test_function_equals_reference(variant: dict[str, Any], keep: int, seed: int, text: int) -> None:
    features, read = random_features(seed), signals(variant, seed, text=text)
    expected = select("cdpruner", features, keep=keep, **read, **variant)
    found = op(keep=keep, **variant)(features=features, **read)
    np.testing.assert_allclose(found["relevance"], expected.details["relevance"], atol=1e-5)
    # 24 features span 24 directions: behind that, what is left of a token is rounding.
    decided = min(keep, WIDTH)
    margins = expected.details["step_margin"][0, :decided]
    if variant["relevance"] == "none":
        assert margins[0] == 0  # all tokens tie
        margins = margins[1:]
    assume((margins > 3e-5).all())
    np.testing.assert_array_equal(found["order"][:, :decided], expected.details["order"][:, :decided])
    if keep <= WIDTH or keep == TOKENS:
        np.testing.assert_array_equal(found["keep_indices"], expected.keep_indices)
        assert found["kept_features"].tobytes() == expected.kept_features.tobytes()


@variants
def test_every_pick_is_the_largest_determinant(variant: dict[str, Any]) -> None:
    """By the definition: the kernel built and its determinants computed."""
    features, read = random_features(21).astype(np.float64), signals(variant, 21)
    found = select("cdpruner", features, keep=8, **read, **variant)
    unit = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    r = found.details["relevance"][0]
    kernel = r[:, None] * (unit @ unit.T) * r[None]
    order = found.details["order"][0].tolist()
    for step in range(1, 8):
        sets = [[*order[:step], token] for token in range(TOKENS) if token not in order[:step]]
        best = max(sets, key=lambda each: np.linalg.det(kernel[np.ix_(each, each)]))
        assert best == order[: step + 1]


def test_relevance_is_the_authors_formula() -> None:
    features, read = random_features(22), signals({"relevance": "clip"}, 22)
    image, text = (each[0] / np.linalg.norm(each[0], axis=1, keepdims=True) for each in read.values())
    mean = -(image @ text.T).mean(1)
    expected = (mean - mean.min() + 1e-6) / (mean.max() - mean.min())
    found = select("cdpruner", features, keep=4, relevance="clip", **read)
    np.testing.assert_allclose(found.details["relevance"][0], expected, atol=1e-6)
    weighted = select("cdpruner", features, keep=4, relevance="clip", theta=0.6, **read)
    ratio = weighted.details["relevance"][0] / np.exp(0.75 * expected)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_the_question_decides() -> None:
    features = random_features(23)
    aimed = features[:, 17:18]
    found = select("cdpruner", features, keep=4, text_embeds=aimed)
    assert found.details["order"][0, 0] == 17
    assert found.details["relevance"][0].argmax() == 17
    other = select("cdpruner", features, keep=4, text_embeds=features[:, 3:4])
    assert other.keep_indices.tolist() != found.keep_indices.tolist()
    away = select("cdpruner", features, keep=4, text_embeds=aimed, negate=True)
    assert away.details["relevance"][0].argmin() == 17


@pytest.mark.filterwarnings("error")
@variants
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_inputs_give_a_valid_selection(variant: dict[str, Any], kind: str) -> None:
    features = hostile(kind)
    for keep in BUDGETS:
        for text in ("random", "zero", "large", "equal"):
            read = signals(variant, 3)
            if read and text != "random":
                read["text_embeds"][:] = {"zero": 0.0, "large": 1e30, "equal": 0.5}[text]
            check_valid(op(keep=keep, **variant)(features=features, **read)["keep_indices"], keep)
            check_valid(select("cdpruner", features, keep=keep, **read, **variant).keep_indices, keep)


@pytest.mark.parametrize("kind", ["equal", "zero"])
def test_equal_tokens_go_by_index(kind: str) -> None:
    features, read = hostile(kind), {"text_embeds": np.zeros((1, 2, WIDTH), np.float32)}
    assert op(keep=8, relevance="llm")(features=features, **read)["keep_indices"].tolist() == [list(range(8))]
    assert select("cdpruner", features, keep=8, **read).keep_indices.tolist() == [list(range(8))]


def test_no_duplicate_before_every_other_token() -> None:
    kept = op(keep=10, relevance="none")(features=hostile("repeated"))["keep_indices"][0]
    assert (kept // 3).tolist() == list(range(10))


@variants
@pytest.mark.parametrize("keep", BUDGETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_gives_a_valid_selection_in_onnx(variant: dict[str, Any], keep: int, value: float) -> None:
    features, read = random_features(2), signals(variant, 2)
    features[0, 3:9, 2] = value
    check_valid(op(keep=keep, **variant)(features=features, **read)["keep_indices"], keep)
    for each in read.values():
        each[0, 0, 0] = value
    check_valid(op(keep=keep, **variant)(features=features, **read)["keep_indices"], keep)


@variants
def test_an_image_does_not_depend_on_its_batch(variant: dict[str, Any]) -> None:
    """The released code takes the least and the largest relevance of the whole batch."""
    features, read = random_features(3, batch=3), signals(variant, 3, batch=3)
    features[2] = np.nan
    together = op(batch=3, **variant)(features=features, **read)
    for image in range(2):
        own = {name: each[image : image + 1] for name, each in read.items()}
        alone = op(**variant)(features=features[image : image + 1], **own)
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][image], value[0])
    both = select("cdpruner", features[:2], keep=12, **{name: each[:2] for name, each in read.items()}, **variant)
    np.testing.assert_array_equal(together["keep_indices"][:2], both.keep_indices)


@pytest.mark.parametrize("variant", VARIANTS[:4], ids=str)
def test_permuted_tokens_permute_the_selection(variant: dict[str, Any]) -> None:
    features, read, moved = random_features(4), signals(variant, 4), np.random.default_rng(5).permutation(TOKENS)
    plain = op(**variant)(features=features, **read)["keep_indices"][0]
    read = {name: each[:, moved] if name == "image_embeds" else each for name, each in read.items()}
    permuted = op(**variant)(features=features[:, moved], **read)["keep_indices"][0]
    assert set(moved[permuted]) == set(plain)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"keep": 0}, "from 1 to 30"),
        ({"keep": 31}, "from 1 to 30"),
        ({"keep": 8, "theta": 0.96}, "theta=0.96 .* from 0 to 0.95"),
        ({"keep": 8, "theta": -0.1}, "theta=-0.1 .* a number from 0"),
        ({"keep": 8, "relevance": "bert"}, "llm, clip, none"),
        ({"keep": 8, "embedding_width": 7}, "embedding_width=7 .* give 24"),
    ],
)
def test_impossible_requests_are_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        op_model("cdpruner", tokens=TOKENS, width=WIDTH, **request_)


def test_a_text_of_another_space_is_refused() -> None:
    with pytest.raises(InputError, match=r"text_embeds has width 16 and features 24"):
        select("cdpruner", random_features(0), keep=8, text_embeds=np.ones((1, 3, 16), np.float32))
    with pytest.raises(InputError, match="needs text_embeds"):
        select("cdpruner", random_features(0), keep=8)
    with pytest.raises(InputError, match="takes no text_embeds"):
        select("cdpruner", random_features(0), keep=8, relevance="none", text_embeds=np.ones((1, 3, 24), np.float32))


def test_a_build_says_whose_relevance_it_is() -> None:
    method = get_method("cdpruner")

    def remarks(**given: Any) -> tuple[str, ...]:
        return method.plan(make_options(method, given), ModelShape((5, 6), layers=32), 8).remarks

    assert "CLIP's text tower" in " ".join(remarks())
    assert remarks(relevance="none") == ()


@variants
def test_model_is_well_formed(variant: dict[str, Any]) -> None:
    model = op_model("cdpruner", tokens=TOKENS, width=WIDTH, keep=12, **variant)
    onnx.checker.check_model(model, full_check=True)
    inputs = {
        each.name: [dim.dim_value or dim.dim_param for dim in each.type.tensor_type.shape.dim]
        for each in model.graph.input
    }
    text = {"text_embeds": [1, "M", WIDTH]}
    image = {"image_embeds": [1, TOKENS, WIDTH]}
    expected = {"llm": text, "clip": image | text, "none": {}}[variant["relevance"]]
    assert inputs == {"features": [1, TOKENS, WIDTH], **expected}
    assert model.functions[0].name == "VtxCDPruner"
    attributes = {each.name for each in model.graph.node[0].attribute}
    assert attributes == {"plugin_namespace", "plugin_version", "keep", "relevance", "negate", "theta"}
    assert attributes == set(model.functions[0].attribute)
