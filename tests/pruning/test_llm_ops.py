"""Ops inside the language model: both forms on random and on hostile inputs, and what has to hold of each."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from pruning_cases import run_stock

from vtexport.engines.profiles import Profile
from vtexport.engines.rtx_worker import Job
from vtexport.errors import InputError
from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.cluster_merge import ClusterMerge, ClusterMergeParameters, quota
from vtexport.pruning.llm.key_norm_topk import KeyNormTopK, key_norms
from vtexport.pruning.llm.op import llm_op_model
from vtexport.pruning.llm.step import LLMOp, LLMSelection, LLMSizes
from vtexport.pruning.llm.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.ties import STEP

OPS: dict[str, LLMOp] = {
    op.op_type: op for op in (AttentionTopK(), ClusterMerge(), KeyNormTopK(), TextSimilarityTopK())
}
TOP = [name for name in OPS if name != "VtxClusterMerge"]
N, KEEPS, CLUSTERS = 23, (1, 2, 9, 22, 23), (1, 6, 23)
ENOUGH = 1e-5  # margins beyond float32's error, relative to what is compared
Inputs = dict[str, np.ndarray]


def sizes(keep: int) -> LLMSizes:
    return LLMSizes(tokens=N, keep=keep, width=24, heads=6, kv_heads=2, head_dim=8)


@functools.cache
def session(name: str, keep: int, parameters: Any, dtype: str = "float32") -> Callable[..., Inputs]:
    return run_stock(llm_op_model(OPS[name], parameters, sizes(keep), dtype=dtype))


def by_onnx(name: str, keep: int, start: int, inputs: Inputs, parameters: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and rows behind the op, without their first axis."""
    dtype = str(inputs["hidden_states"].dtype)
    named = {each: inputs[each][None] for each in ("hidden_states", *OPS[name].signals)}
    found = session(name, keep, parameters, dtype)(visual_start=np.array([start]), **named)
    return found["hidden_states_out"][0], found["rows"][0]


def by_reference(name: str, keep: int, start: int, inputs: Inputs, parameters: Any = None) -> LLMSelection:
    signals = {each: inputs[each] for each in OPS[name].signals}
    return OPS[name].select(inputs["hidden_states"], start, signals, sizes=sizes(keep), parameters=parameters)


def random_inputs(seed: int, start: int, behind: int, labels: int = 6, dtype: str = "float32") -> Inputs:
    """A sequence with N visual tokens at `start` and `behind` rows after them."""
    rng, rows = np.random.default_rng(seed), start + N + behind
    return {
        "hidden_states": rng.standard_normal((rows, 24)).astype(dtype),
        "keys": rng.standard_normal((rows, 2, 8)).astype(dtype),
        "query": rng.standard_normal((6, 8)).astype(dtype),
        "labels": rng.integers(-1, labels, N),
    }


def decided(found: LLMSelection) -> bool:
    """Whether the margins are beyond float32's error, also of sums over all tokens."""
    scale = np.abs(found.details.get("scores", found.details.get("saliency"))).max()
    margins = [float(value) for name, value in found.details.items() if name.endswith("margin")]
    return min(margins) > ENOUGH * max(1.0, scale * N)


def assert_valid(hidden: np.ndarray, rows: np.ndarray, keep: int, start: int, inputs: Inputs) -> np.ndarray:
    """Exactly `keep` different visual tokens, ascending; text in its place with its bits. Which tokens they are."""
    before = inputs["hidden_states"]
    kept = rows[start : start + keep] - start
    assert len(rows) == len(before) - N + keep == len(hidden)
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < N
    text = [*range(start), *range(start + N, len(before))]
    np.testing.assert_array_equal(np.delete(rows, np.s_[start : start + keep]), text)
    assert np.delete(hidden, np.s_[start : start + keep], axis=0).tobytes() == before[text].tobytes()
    assert hidden.dtype == before.dtype
    return kept


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", TOP)
@given(seed=st.integers(0, 2**32), start=st.integers(0, 9), behind=st.integers(0, 9), keep=st.sampled_from(KEEPS))
@settings(max_examples=25, deadline=None)
def test_top_tokens(name: str, dtype: str, seed: int, start: int, behind: int, keep: int) -> None:
    """Images anywhere, sequences of any length by one graph; kept rows are copies."""
    inputs = random_inputs(seed, start, behind, dtype=dtype)
    hidden, rows = by_onnx(name, keep, start, inputs)
    kept = assert_valid(hidden, rows, keep, start, inputs)
    assert hidden.tobytes() == inputs["hidden_states"][rows].tobytes()
    found = by_reference(name, keep, start, inputs)
    assert found.rows.tobytes() == inputs["hidden_states"][start + found.kept].tobytes()
    if decided(found):
        np.testing.assert_array_equal(kept, found.kept)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(
    seed=st.integers(0, 2**32),
    start=st.integers(0, 9),
    behind=st.integers(0, 9),
    keep=st.sampled_from(KEEPS),
    clusters=st.sampled_from(CLUSTERS),
    merge=st.sampled_from(["sum", "mean"]),
)
@settings(max_examples=60, deadline=None)
def test_clusters(dtype: str, seed: int, start: int, behind: int, keep: int, clusters: int, merge: str) -> None:
    inputs = random_inputs(seed, start, behind, clusters, dtype)
    parameters = ClusterMergeParameters(clusters=clusters, merge=merge)
    hidden, rows = by_onnx("VtxClusterMerge", keep, start, inputs, parameters)
    kept = assert_valid(hidden, rows, keep, start, inputs)
    found = by_reference("VtxClusterMerge", keep, start, inputs, parameters)
    assert found.merged is not None
    labels, single = inputs["labels"], ~found.merged
    count = len(set(labels))
    assert found.merged.sum() == min(count, keep)
    if count <= keep:
        assert set(labels[found.kept]) == set(labels[kept]) == set(labels), "a cluster is gone"
        assert (found.details["quotas"] + 1).sum() == keep
    assert found.rows[single].tobytes() == inputs["hidden_states"][start + found.kept[single]].tobytes()
    if decided(found):
        np.testing.assert_array_equal(kept, found.kept)
        block = hidden[start : start + keep]
        assert block[single].tobytes() == found.rows[single].tobytes()
        np.testing.assert_allclose(block, found.rows, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 23])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_numbers_of_clusters_around_the_budget(count: int, merge: str) -> None:
    """9 tokens to keep. A rest of one token is twice that token with `sum`, and the token itself with `mean`."""
    inputs = random_inputs(3, 4, 5)
    inputs["labels"] = np.arange(N) % count
    parameters = ClusterMergeParameters(clusters=count, merge=merge)
    hidden, rows = by_onnx("VtxClusterMerge", 9, 4, inputs, parameters)
    kept = assert_valid(hidden, rows, 9, 4, inputs)
    found = by_reference("VtxClusterMerge", 9, 4, inputs, parameters)
    assert decided(found)
    np.testing.assert_array_equal(kept, found.kept)
    np.testing.assert_allclose(hidden[4:13], found.rows, rtol=1e-5, atol=1e-5)
    if count == 23:  # then 8 tokens stand for themselves and one for the 15 others
        own = inputs["hidden_states"][4 + kept] * (2 if merge == "sum" else 1)
        assert (np.abs(hidden[4:13] - own).max(1) < 1e-6).sum() == 8


def test_all_tokens_of_one_cluster_each_stay() -> None:
    inputs = random_inputs(4, 4, 5)
    inputs["labels"] = np.arange(N)
    parameters = ClusterMergeParameters(clusters=N)
    hidden, rows = by_onnx("VtxClusterMerge", N, 4, inputs, parameters)
    np.testing.assert_array_equal(rows, np.arange(4 + N + 5))
    np.testing.assert_array_equal(hidden[4 : 4 + N], 2 * inputs["hidden_states"][4 : 4 + N])


HOSTILE = {
    "equal": lambda x: np.full_like(x, 0.5),
    "zero": np.zeros_like,
    "NaN": lambda x: np.full_like(x, np.nan),
    "Inf": lambda x: np.full_like(x, np.inf),
    "one NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, np.float32(np.nan), x),
    "one Inf": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, np.float32(np.inf), x),
    "huge": lambda x: x * np.float32(1e37),
    "tiny": lambda x: x * np.float32(1e-38),
}
LABELS = {
    "none": np.full(N, -1),
    "one": np.zeros(N, int),
    "each": np.arange(N),
    "some empty": np.arange(N) % 2 * 5,
    "out of range": np.array([-99, 99] * N)[:N],
    "mixed": np.arange(N) % 7 - 1,
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", TOP)
def test_hostile_inputs_of_top_tokens(name: str, hostile: str) -> None:
    for keep in KEEPS:
        inputs = random_inputs(5, 3, 4)
        for each in OPS[name].signals or ("hidden_states",):
            inputs[each] = HOSTILE[hostile](inputs[each])
        hidden, rows = by_onnx(name, keep, 3, inputs)
        kept = assert_valid(hidden, rows, keep, 3, inputs)
        assert hidden.tobytes() == inputs["hidden_states"][rows].tobytes()
        if hostile in {"equal", "zero", "NaN", "Inf"}:
            np.testing.assert_array_equal(kept, np.arange(keep), "ties to the lower index")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("hostile", ["none", *HOSTILE])
def test_hostile_inputs_of_clusters(hostile: str, labels: str) -> None:
    for keep in KEEPS:
        for clusters in CLUSTERS:
            inputs = random_inputs(6, 3, 4) | {"labels": LABELS[labels]}
            inputs["keys"] = HOSTILE.get(hostile, lambda x: x)(inputs["keys"])
            parameters = ClusterMergeParameters(clusters=clusters)
            hidden, rows = by_onnx("VtxClusterMerge", keep, 3, inputs, parameters)
            assert_valid(hidden, rows, keep, 3, inputs)
            merged = (hidden != inputs["hidden_states"][rows]).any(1).sum()
            seen = np.clip(LABELS[labels], -1, clusters - 1)
            assert merged == min(keep, len(set(seen)))
            if hostile in {"none", "equal", "zero"} and labels != "out of range" and clusters == 23:
                found = by_reference("VtxClusterMerge", keep, 3, inputs, parameters)
                np.testing.assert_array_equal(rows[3 : 3 + keep] - 3, found.kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", OPS)
def test_the_reference_refuses_what_is_not_finite(name: str, bad: float) -> None:
    parameters = ClusterMergeParameters(clusters=6) if name == "VtxClusterMerge" else None
    for each in ("hidden_states", *OPS[name].signals):
        inputs = random_inputs(7, 3, 4)
        if each != "labels":
            inputs[each].flat[5] = bad
            with pytest.raises(InputError, match=f"{each} holds NaN or infinite"):
                by_reference(name, 9, 3, inputs, parameters)


@pytest.mark.parametrize("name", OPS)
def test_bfloat16(name: str) -> None:
    """ONNX Runtime's CPU provider lacks bfloat16; ONNX's own evaluator stands in for it."""
    inputs = random_inputs(8, 3, 4)
    given = {n: value if n == "labels" else value.astype(ml_dtypes.bfloat16) for n, value in inputs.items()}
    exact = {n: value if n == "labels" else value.astype(np.float32) for n, value in given.items()}
    parameters = ClusterMergeParameters(clusters=6) if name == "VtxClusterMerge" else None
    model = llm_op_model(OPS[name], parameters, sizes(9), dtype="bfloat16")
    onnx.checker.check_model(model, full_check=True)
    named = {each: given[each][None] for each in ("hidden_states", *OPS[name].signals)}
    hidden, rows = ReferenceEvaluator(model).run(None, {"visual_start": np.array([3]), **named})
    found = by_reference(name, 9, 3, exact, parameters)
    assert decided(found)
    np.testing.assert_array_equal(rows[0, 3:12] - 3, found.kept)
    assert hidden.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(hidden[0, 3:12].astype(np.float32), found.rows, rtol=1e-2)


@pytest.mark.parametrize("name", OPS)
def test_pytorch_tensors(name: str) -> None:
    inputs = random_inputs(9, 3, 4)
    parameters = ClusterMergeParameters(clusters=6) if name == "VtxClusterMerge" else None
    found = by_reference(name, 9, 3, inputs, parameters)
    same: Any = by_reference(name, 9, 3, {n: torch.from_numpy(v) for n, v in inputs.items()}, parameters)  # type: ignore[misc]
    np.testing.assert_array_equal(same.kept.numpy(), found.kept)
    np.testing.assert_allclose(same.rows.numpy(), found.rows, rtol=1e-6)


@pytest.mark.parametrize("name", TOP)
def test_kept_tokens_move_with_the_tokens(name: str) -> None:
    """Visual tokens in another order: the same ones stay. A larger budget keeps what a smaller one kept."""
    inputs = random_inputs(10, 3, 4)
    order = np.random.default_rng(0).permutation(N)
    moved = {n: v.copy() for n, v in inputs.items()}
    for each in ("hidden_states", "keys"):
        moved[each][3 : 3 + N] = inputs[each][3 + order]
    smaller: set[int] = set()
    for keep in KEEPS:
        kept = by_onnx(name, keep, 3, inputs)[1][3 : 3 + keep] - 3
        assert set(order[by_onnx(name, keep, 3, moved)[1][3 : 3 + keep] - 3]) == set(kept)
        assert smaller <= set(kept)
        smaller = set(kept)


@pytest.mark.parametrize("name", ["VtxKeyNormTopK", "VtxClusterMerge"])
def test_saliency_ignores_heads_and_rotation(name: str) -> None:
    """Heads in another order, or keys before their rotary positions: l and what is kept are the same."""
    inputs = random_inputs(11, 3, 4)
    parameters = ClusterMergeParameters(clusters=6) if name == "VtxClusterMerge" else None
    found = by_reference(name, 9, 3, inputs, parameters)
    swapped = inputs | {"keys": inputs["keys"][:, ::-1]}
    angles = np.arange(len(inputs["keys"]))[:, None, None] * 10.0 ** -np.arange(4)
    first, second = np.split(inputs["keys"].astype(np.float64), 2, axis=2)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = inputs | {"keys": np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)}
    for other in (swapped, turned):
        np.testing.assert_allclose(key_norms(np, other["keys"]), key_norms(np, inputs["keys"]), rtol=1e-12)
        np.testing.assert_array_equal(by_reference(name, 9, 3, other, parameters).kept, found.kept)


def test_text_similarity_is_that_of_the_texts_mean() -> None:
    """Visual rows do not count, the order of the text does not matter, and lengths of visual rows do not either."""
    inputs = random_inputs(12, 3, 4)
    hidden = inputs["hidden_states"].astype(np.float64)
    text = np.concatenate([hidden[:3], hidden[3 + N :]]).mean(0)
    visual = hidden[3 : 3 + N]
    cosines = visual @ text / np.linalg.norm(visual, axis=1) / np.linalg.norm(text)
    found = by_reference("VtxTextSimilarityTopK", 9, 3, inputs)
    np.testing.assert_allclose(found.details["scores"], cosines, rtol=0, atol=STEP)  # told apart from there on
    other = inputs["hidden_states"].copy()
    other[[0, 1, 2, -1]] = other[[-1, 2, 1, 0]]
    other[3 : 3 + N] *= np.linspace(0.1, 9, N, dtype=np.float32)[:, None]
    _, rows = by_onnx("VtxTextSimilarityTopK", 9, 3, inputs | {"hidden_states": other})
    np.testing.assert_array_equal(rows[3:12] - 3, found.kept)


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=30), data=st.data())
@settings(max_examples=200, deadline=None)
def test_quotas_sum_up(counts: list[int], data: st.DataObject) -> None:
    """One round of corrections is always enough."""
    totals = data.draw(st.lists(st.integers(0, 9), min_size=len(counts), max_size=len(counts)))
    keep = data.draw(st.integers(len(counts), sum(counts)))
    quotas = quota(counts, [float(each) for each in totals], keep)
    assert sum(quotas) == keep - len(counts)
    assert all(0 <= own < count for own, count in zip(quotas, counts, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_tensorrt_rtx_builds_every_op(name: str, tmp_path: Path) -> None:
    """In float16, for sequences of any length; without tensorrt_rtx this fails and is not skipped."""
    parameters = ClusterMergeParameters(clusters=23) if name == "VtxClusterMerge" else None
    onnx.save(llm_op_model(OPS[name], parameters, sizes(9), dtype="float16"), tmp_path / "op.onnx")
    shapes = {"hidden_states": [[1, rows, 24] for rows in (N, 40, 99)]}
    if "keys" in OPS[name].signals:
        shapes["keys"] = [[1, rows, 2, 8] for rows in (N, 40, 99)]
    job = Job(
        graph=str(tmp_path / "op.onnx"),
        engine=str(tmp_path / "engine"),
        profiles=[Profile(name="lengths", shapes=shapes)],
        compute_capabilities=[],
        parent=os.getpid(),
    )
    worker = [sys.executable, "-m", "vtexport.engines.rtx_worker"]
    done = subprocess.run(worker, input=msgspec.json.encode(job), capture_output=True, check=False)
    assert (tmp_path / "engine").is_file(), done.stdout + done.stderr
    assert (tmp_path / "engine").stat().st_size > 1000
