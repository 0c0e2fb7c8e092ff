"""The cases for native ops, tried on the one float32 implementation that is always there: the ONNX functions.

They show that what the cases call sure is reached by float32 arithmetic, and that the comparison sees what is wrong.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from native_onnx import METHODS, options
from native_ops.calls import as_dtype, widened
from native_ops.cases import (
    LARGE,
    RANDOM_KINDS,
    STEPS,
    golden_case,
    golden_names,
    golden_types,
    large_case,
    random_case,
)
from native_ops.compare import Case, problems
from pruning_cases import run_stock

from vtexport.pruning import diagnostic_model
from vtexport.pruning.llm.cluster_merge import ClusterMergeParameters
from vtexport.pruning.llm.op import llm_op_model
from vtexport.pruning.llm.step import LLMSizes


def by_onnx(case: Case) -> dict[str, np.ndarray]:
    """The outputs of a call, by the op's ONNX function; in float32, with features that are rounded to the type."""
    call, sizes = case.call, case.call.sizes
    floats = {name: widened(each, call.dtype) if each.dtype != np.int64 else each for name, each in call.inputs.items()}
    if not call.is_step:
        given = {name: floats[name] if name == "features" else each for name, each in call.inputs.items()}
        request: dict[str, Any] = {"grid": (sizes.grid_rows, sizes.grid_columns), "width": sizes.width}
        request |= {"tokens": sizes.grid_rows * sizes.grid_columns, "keep": sizes.keep, "batch": sizes.batch}
        request |= {each: getattr(sizes, each) or None for each in ("heads", "head_width", "embedding_width")}
        found = run_stock(diagnostic_model(METHODS[call.op_type], **request, **options(call)))(**given)
        found = {name: found[name] for name in call.outputs}
        found["kept_features"] = as_dtype(found["kept_features"], call.dtype)
        return {name: found[name].astype(kind, copy=False) for name, (_, kind) in call.outputs.items()}
    merging = None
    if call.op_type == "VtxClusterMerge":
        merge = "mean" if call.parameter("mean") else "sum"
        merging = ClusterMergeParameters(clusters=call.parameter("clusters"), merge=merge)
    shape = LLMSizes(sizes.visual_count, sizes.keep, sizes.width, sizes.query_heads or 1, sizes.key_heads or 1,
                     sizes.head_width or 1)  # fmt: skip
    named = {name: call.inputs[name] if name == "labels" else floats[name] for name in STEPS[call.op_type].signals}
    named = {name: each[None] for name, each in named.items()} | {"visual_start": call.inputs["visual_start"]}
    run = run_stock(llm_op_model(STEPS[call.op_type], merging, shape))
    values = run(hidden_states=floats["hidden_states"][None], **named)
    return {"hidden_states_out": as_dtype(values["hidden_states_out"][0], call.dtype), "out_rows": values["rows"][0]}


def without_unknown(case: Case, found: dict[str, np.ndarray]) -> Case:
    """The case less what the ONNX form of a step does not give."""
    known = {name: each for name, each in case.expected.items() if name in found}
    return dataclasses.replace(case, expected=known)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_float32_reaches_what_is_sure(kind: str) -> None:
    sure = []
    for seed in range(5):
        case = random_case(seed, kind)
        found = by_onnx(case)
        assert problems(without_unknown(case, found), found) == []
        sure += case.sure.tolist()
    assert np.mean(sure) > 0.5, "cases that leave most open test little"


@pytest.mark.parametrize("name", golden_names()[::9])
def test_golden_cases_hold(name: str) -> None:
    case = golden_case(name, golden_types(name)[-1])
    found = by_onnx(case)
    assert problems(without_unknown(case, found), found) == []


def test_there_are_cases_of_every_method() -> None:
    assert len(golden_names()) == 109
    assert {name.split("/")[0] for name in golden_names()} == {
        *("prunesid", "vitcop", "nuwa", "divprune", "cdpruner", "cluster_merge", "key_norm_topk", "attention_topk")
    }
    assert {case.call.op_type for case in map(random_case, range(12))} == {*METHODS, *STEPS}
    assert {kind for kind, *_ in LARGE} == set(RANDOM_KINDS) - set(STEPS)


def test_a_large_case_has_the_sizes_of_a_model() -> None:
    case = large_case(2)
    assert case.call.inputs["features"].shape == (1, 577, 1024)
    assert case.call.sizes.keep == 192


def golden_of(method: str) -> tuple[Case, dict[str, np.ndarray]]:
    name = next(each for each in golden_names() if each.startswith(method))
    case = golden_case(name, "float32")
    found = by_onnx(case)
    return without_unknown(case, found), found


@pytest.mark.parametrize("method", ["prunesid", "vitcop", "nuwa", "divprune", "cluster_merge", "key_norm_topk"])
def test_the_comparison_sees_one_wrong_token(method: str) -> None:
    case, found = golden_of(method)
    name = "out_rows" if case.call.is_step else "keep_indices"
    block = 35 if case.call.is_step else 0
    changed = found[name].copy()
    flat = changed.reshape(-1)
    kept = flat[block:][: case.call.sizes.keep]
    absent = next(each for each in range(kept[0], kept[-1]) if each not in kept) if case.call.is_step else next(
        each for each in range(576) if each not in kept)  # fmt: skip
    place = block + (int(np.searchsorted(kept, absent)) if method != "prunesid" else 5)
    flat[place] = absent
    assert any(name in each or "raster" in each or "row" in each for each in problems(case, found | {name: changed}))


def test_the_comparison_sees_changed_bits_and_repeats() -> None:
    case, found = golden_of("divprune")
    rows = found["kept_features"].copy()
    rows.view(np.uint32)[0, 3, 7] ^= 1
    assert "bit for bit" in problems(case, found | {"kept_features": rows})[0]
    twice = found["keep_indices"].copy()
    twice[0, 1] = twice[0, 0]
    assert "different patches" in problems(case, found | {"keep_indices": twice})[0]
    beyond = found["keep_indices"].copy()
    beyond[0, -1] = 576
    assert "not among" in problems(case, found | {"keep_indices": beyond})[0]
    order = found["order"].copy()
    order[0, [3, 4]] = order[0, [4, 3]]
    assert "order: 2 of" in problems(case, found | {"order": order})[0]


def test_near_ties_are_open_and_the_rest_is_not() -> None:
    """Of an image that is not sure, only what is marked may be asked for."""
    case, found = golden_of("divprune")
    picks = np.arange(32)[None] < 5
    open_ = dataclasses.replace(case, sure=np.zeros(1, bool), parts={"order": picks})
    order = found["order"].copy()
    order[0, [9, 10]] = order[0, [10, 9]]
    assert problems(open_, found | {"order": order}) == []
    order[0, [2, 3]] = order[0, [3, 2]]
    assert problems(open_, found | {"order": order}) != []


def test_bfloat16_is_rounded_to_nearest_ties_to_even() -> None:
    import ml_dtypes

    values = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0]
    np.testing.assert_array_equal(as_dtype(values, "bfloat16"), values.astype(ml_dtypes.bfloat16).view(np.uint16))
    same = widened(as_dtype(values, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(same, values.astype(ml_dtypes.bfloat16).astype(np.float32))
