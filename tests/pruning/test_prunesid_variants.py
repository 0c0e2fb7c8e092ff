"""The paper's and the Qwen2-VL code's settings of PruneSID: the latter index for index against the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtexport.errors import UsageError
from vtexport.pruning import ModelShape, diagnostic_model, get_method, make_options, select
from vtexport.pruning.ops.prunesid import allocate
from vtexport.pruning.types import after_space

FILES = sorted((Path(__file__).parents[1] / "data" / "golden").glob("prunesid_qwen_*.npz"))
METHOD = get_method("prunesid")


def qwen_cases() -> list[Any]:
    return [
        pytest.param(path, need, id=f"{path.stem.removeprefix('prunesid_qwen_')}-N{need}")
        for path in FILES
        for need in (64, 128, 256)
    ]


def golden(path: Path, need: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Tokens [1, 400, 256] float16, and the values of the case by their names without the prefix."""
    file = np.load(path)
    prefix = f"N{need}_"
    return file["tokens"][None], {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}


def agrees(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(found["groups"][0], expected["groups"])
    np.testing.assert_array_equal(found["survivors"][0], expected["m_g"])
    np.testing.assert_array_equal(found["taken"][0], expected["n_g"])
    np.testing.assert_allclose(found["rho"][0], expected["rho_q"], atol=2e-7)
    np.testing.assert_allclose(found["tau"][0], expected["tau"], atol=1e-6)


def test_the_golden_files_are_here() -> None:
    assert len(FILES) == 2


@pytest.mark.parametrize(("path", "need"), qwen_cases())
def test_qwen_equals_the_authors_code(path: Path, need: int, stock: Callable[..., Any]) -> None:
    tokens, expected = golden(path, need)
    keep = int(expected["n"])
    for features in (tokens, torch.from_numpy(tokens)):
        found = select("prunesid", features, keep=keep, variant="qwen")
        np.testing.assert_array_equal(found.keep_indices[0], expected["indices"])
        agrees({name: np.asarray(value) for name, value in found.details.items()}, expected)
    model = diagnostic_model("prunesid", tokens=400, width=256, keep=keep, dtype="float16", variant="qwen")
    values = stock(model)(features=tokens)
    np.testing.assert_array_equal(values["keep_indices"][0], expected["indices"])
    agrees(values, expected)


def test_the_tied_fill_step_is_met() -> None:
    """There, groups of equal m_g compete for what is missing; the lower group wins."""
    _, expected = golden(FILES[0], 128)
    assert len(set(expected["m_g"].tolist())) < len(expected["m_g"])


@pytest.mark.parametrize(
    ("variant", "keep", "tokens", "expected"),
    [
        ("official", 64, 576, (16, 2.0, "token", "cls_attention", "group", True, "pairs", "bounded", "vision")),
        ("paper", 64, 576, (16, 2.0, "feature", "abs_v", "group", False, "pairs", "proportional", "vision")),
        ("qwen", 64, 576, (16, 2.0, "token", "abs_v", "group", False, "triangle", "bounded", "projected")),
        ("qwen", 10, 400, (4, 1.0, "token", "abs_v", "group", False, "triangle", "bounded", "projected")),
        ("qwen", 151, 400, (37, 6.795, "token", "abs_v", "raster", False, "triangle", "bounded", "projected")),
    ],
)
def test_what_a_variant_sets(variant: str, keep: int, tokens: int, expected: tuple[Any, ...]) -> None:
    schedule = METHOD.plan(make_options(METHOD, {"variant": variant}), ModelShape((1, tokens), layers=32), keep)
    names = [
        "groups",
        "threshold_scale",
        "center",
        "nms_score",
        "order",
        "cls_slot",
        "redundancy",
        "shares",
        "space",
    ]
    assert tuple(schedule.settings[name] for name in names) == expected
    assert tuple(getattr(schedule.first.op, name) for name in names[:-1]) == expected[:-1]
    assert schedule.first.place == after_space(expected[-1])


def test_single_options_override_the_variant() -> None:
    given = {"variant": "paper", "center": "token", "nms_score": "cls_attention", "cls_slot": "yes"}
    given |= {"shares": "bounded"}
    options = make_options(METHOD, given)
    op = METHOD.first_op(options, ModelShape((6, 6), layers=32), 12).op
    assert op.signals() == ("cls_attention",)
    assert op.takes_cls
    assert METHOD.takes_cls(options)
    features = np.random.default_rng(0).standard_normal((1, 37, 16))
    scores = np.random.default_rng(1).random((1, 36))
    mixed = select("prunesid", features, scores, keep=12, **given)
    plain = select("prunesid", features, scores, keep=12)
    np.testing.assert_array_equal(mixed.keep_indices, plain.keep_indices)


def test_cls_is_not_behind_the_projector() -> None:
    with pytest.raises(UsageError, match=r"cls_slot=True is not allowed with space=projected.*cls_slot=false"):
        METHOD.first_op(make_options(METHOD, {"space": "projected"}), ModelShape((6, 6), layers=32), 12)


def test_dynamic_budgets_need_the_papers_rho() -> None:
    allowed = {
        name: METHOD.plan(make_options(METHOD, {"variant": name}), ModelShape((6, 6), layers=32), 12).adaptive
        for name in ("official", "paper", "qwen")
    }
    assert allowed == {"official": True, "paper": True, "qwen": False}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_proportional_shares(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(any))
    survivors = [data.draw(st.integers(0, size)) for size in sizes]
    keep = data.draw(st.integers(1, sum(sizes)))
    taken = allocate(sizes, survivors, keep=keep, cls_slots=0, bounded=False)
    assert sum(taken) == keep
    assert all(0 <= took <= size for took, size in zip(taken, sizes, strict=True))
    if sum(survivors) >= keep:
        assert all(took <= alive for took, alive in zip(taken, survivors, strict=True))
        exact = [keep * alive / sum(survivors) for alive in survivors]
        assert all(abs(took - share) <= 1 for took, share in zip(taken, exact, strict=True))
