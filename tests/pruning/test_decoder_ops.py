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

from vtexport.backends.record import Profile
from vtexport.backends.trt.worker import Job
from vtexport.errors import InputError
from vtexport.pruning import Op, Selection, Sizes
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge, quota
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK, key_norms
from vtexport.pruning.ops.text_similarity_topk import TextSimilarityTopK
from vtexport.pruning.ties import STEP

N, KEEPS, CLUSTERS = 23, (1, 2, 9, 22, 23), (1, 6, 23)
TOP: list[Op] = [AttentionTopK(), KeyNormTopK(), TextSimilarityTopK()]
ENOUGH = 1e-5  # margins beyond float32's error, relative to what is compared
Inputs = dict[str, Any]


def each_of(*ops: Op) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("op", ops, ids=[op.op_type for op in ops])


every_top = each_of(*TOP)
every_op = each_of(*TOP, ClusterMerge(clusters=6))


def sizes(keep: int) -> Sizes:
    return Sizes(batch=1, grid=(1, N), width=24, keep=keep, heads=6, kv_heads=2, head_dim=8)


def named(op: Op, start: int, inputs: Inputs) -> Inputs:
    """Inputs of the op, from inputs by name without their first axis."""
    first = np.array([start]) if isinstance(inputs["hidden_states"], np.ndarray) else torch.tensor([start])
    given = {name: value[None] for name, value in inputs.items()} | {"visual_start": first}
    return {each.name: given[each.name] for each in op.inputs()}


def signals(op: Op) -> list[str]:
    """Inputs of the op besides the sequence."""
    return [each.name for each in op.inputs()][2:]


@functools.cache
def session(op: Op, keep: int, dtype: str = "float32") -> Callable[..., Inputs]:
    return run_stock(model_of_op(op, sizes(keep), dtype=dtype))


def by_onnx(op: Op, keep: int, start: int, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and rows behind the op, without their first axis."""
    found = session(op, keep, str(inputs["hidden_states"].dtype))(**named(op, start, inputs))
    return found["hidden_states_out"][0], found["rows"][0]


def by_reference(op: Op, keep: int, start: int, inputs: Inputs) -> Selection:
    """The reference's selection, without the first axis."""
    found = op.select(named(op, start, inputs), sizes(keep))
    details = {name: value[0] for name, value in found.details.items()}
    merged = None if found.merged is None else found.merged[0]
    return Selection(found.keep_indices[0], found.kept_features[0], details, merged)


def random_inputs(seed: int, start: int, behind: int, labels: int = 6, dtype: str = "float32") -> Inputs:
    """A sequence with N visual tokens at `start` and `behind` rows after them."""
    rng, rows = np.random.default_rng(seed), start + N + behind
    return {
        "hidden_states": rng.standard_normal((rows, 24)).astype(dtype),
        "keys": rng.standard_normal((rows, 2, 8)).astype(dtype),
        "query": rng.standard_normal((6, 8)).astype(dtype),
        "labels": rng.integers(-1, labels, N),
    }


def decided(found: Selection) -> bool:
    """True where the margins are beyond float32's error, also of sums over all tokens."""
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
@every_top
@given(seed=st.integers(0, 2**32), start=st.integers(0, 9), behind=st.integers(0, 9), keep=st.sampled_from(KEEPS))
@settings(max_examples=25, deadline=None)
def test_top_tokens(op: Op, dtype: str, seed: int, start: int, behind: int, keep: int) -> None:
    """Images anywhere, sequences of any length by one graph; kept rows are copies."""
    inputs = random_inputs(seed, start, behind, dtype=dtype)
    hidden, rows = by_onnx(op, keep, start, inputs)
    kept = assert_valid(hidden, rows, keep, start, inputs)
    assert hidden.tobytes() == inputs["hidden_states"][rows].tobytes()
    found = by_reference(op, keep, start, inputs)
    assert found.kept_features.tobytes() == inputs["hidden_states"][start + found.keep_indices].tobytes()
    if decided(found):
        np.testing.assert_array_equal(kept, found.keep_indices)


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
    op = ClusterMerge(clusters=clusters, merge=merge)
    hidden, rows = by_onnx(op, keep, start, inputs)
    kept = assert_valid(hidden, rows, keep, start, inputs)
    found = by_reference(op, keep, start, inputs)
    assert found.merged is not None
    labels, single = inputs["labels"], ~found.merged
    count = len(set(labels))
    assert found.merged.sum() == min(count, keep)
    if count <= keep:
        assert set(labels[found.keep_indices]) == set(labels[kept]) == set(labels), "a cluster is gone"
        assert (found.details["quotas"] + 1).sum() == keep
    before = inputs["hidden_states"][start + found.keep_indices]
    assert found.kept_features[single].tobytes() == before[single].tobytes()
    if decided(found):
        np.testing.assert_array_equal(kept, found.keep_indices)
        block = hidden[start : start + keep]
        assert block[single].tobytes() == found.kept_features[single].tobytes()
        np.testing.assert_allclose(block, found.kept_features, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 23])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_numbers_of_clusters_around_the_budget(count: int, merge: str) -> None:
    """9 tokens to keep. A rest of one token is twice that token with `sum`, and the token itself with `mean`."""
    inputs = random_inputs(3, 4, 5)
    inputs["labels"] = np.arange(N) % count
    op = ClusterMerge(clusters=count, merge=merge)
    hidden, rows = by_onnx(op, 9, 4, inputs)
    kept = assert_valid(hidden, rows, 9, 4, inputs)
    found = by_reference(op, 9, 4, inputs)
    assert decided(found)
    np.testing.assert_array_equal(kept, found.keep_indices)
    np.testing.assert_allclose(hidden[4:13], found.kept_features, rtol=1e-5, atol=1e-5)
    if count == 23:  # then 8 tokens stand for themselves and one for the 15 others
        own = inputs["hidden_states"][4 + kept] * (2 if merge == "sum" else 1)
        assert (np.abs(hidden[4:13] - own).max(1) < 1e-6).sum() == 8


def test_all_tokens_of_one_cluster_each_stay() -> None:
    inputs = random_inputs(4, 4, 5)
    inputs["labels"] = np.arange(N)
    op = ClusterMerge(clusters=N)
    hidden, rows = by_onnx(op, N, 4, inputs)
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
@every_top
def test_hostile_inputs_of_top_tokens(op: Op, hostile: str) -> None:
    for keep in KEEPS:
        inputs = random_inputs(5, 3, 4)
        for each in signals(op) or ("hidden_states",):
            inputs[each] = HOSTILE[hostile](inputs[each])
        hidden, rows = by_onnx(op, keep, 3, inputs)
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
            op = ClusterMerge(clusters=clusters)
            hidden, rows = by_onnx(op, keep, 3, inputs)
            assert_valid(hidden, rows, keep, 3, inputs)
            merged = (hidden != inputs["hidden_states"][rows]).any(1).sum()
            seen = np.clip(LABELS[labels], -1, clusters - 1)
            assert merged == min(keep, len(set(seen)))
            if hostile in {"none", "equal", "zero"} and labels != "out of range" and clusters == 23:
                found = by_reference(op, keep, 3, inputs)
                np.testing.assert_array_equal(rows[3 : 3 + keep] - 3, found.keep_indices)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_op
def test_the_reference_refuses_what_is_not_finite(op: Op, bad: float) -> None:
    for each in ("hidden_states", *signals(op)):
        inputs = random_inputs(7, 3, 4)
        if each != "labels":
            inputs[each].flat[5] = bad
            with pytest.raises(InputError, match=f"{each} holds NaN or infinite"):
                by_reference(op, 9, 3, inputs)


@every_op
def test_bfloat16(op: Op) -> None:
    """ONNX Runtime's CPU provider lacks bfloat16; ONNX's own evaluator stands in for it."""
    inputs = random_inputs(8, 3, 4)
    given = {n: value if n == "labels" else value.astype(ml_dtypes.bfloat16) for n, value in inputs.items()}
    exact = {n: value if n == "labels" else value.astype(np.float32) for n, value in given.items()}
    model = model_of_op(op, sizes(9), dtype="bfloat16")
    onnx.checker.check_model(model, full_check=True)
    hidden, rows = ReferenceEvaluator(model).run(None, named(op, 3, given))
    found = by_reference(op, 9, 3, exact)
    assert decided(found)
    np.testing.assert_array_equal(rows[0, 3:12] - 3, found.keep_indices)
    assert hidden.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(hidden[0, 3:12].astype(np.float32), found.kept_features, rtol=1e-2)


@every_op
def test_pytorch_tensors(op: Op) -> None:
    inputs = random_inputs(9, 3, 4)
    found = by_reference(op, 9, 3, inputs)
    same = by_reference(op, 9, 3, {n: torch.from_numpy(v) for n, v in inputs.items()})
    np.testing.assert_array_equal(same.keep_indices.numpy(), found.keep_indices)
    np.testing.assert_allclose(same.kept_features.numpy(), found.kept_features, rtol=1e-6)


@every_top
def test_kept_tokens_move_with_the_tokens(op: Op) -> None:
    """Visual tokens in another order: the same ones stay. A larger budget keeps what a smaller one kept."""
    inputs = random_inputs(10, 3, 4)
    order = np.random.default_rng(0).permutation(N)
    moved = {n: v.copy() for n, v in inputs.items()}
    for each in ("hidden_states", "keys"):
        moved[each][3 : 3 + N] = inputs[each][3 + order]
    smaller: set[int] = set()
    for keep in KEEPS:
        kept = by_onnx(op, keep, 3, inputs)[1][3 : 3 + keep] - 3
        assert set(order[by_onnx(op, keep, 3, moved)[1][3 : 3 + keep] - 3]) == set(kept)
        assert smaller <= set(kept)
        smaller = set(kept)


@each_of(KeyNormTopK(), ClusterMerge(clusters=6))
def test_saliency_ignores_heads_and_rotation(op: Op) -> None:
    """Heads in another order, or keys before their rotary positions: l and what is kept are the same."""
    inputs = random_inputs(11, 3, 4)
    found = by_reference(op, 9, 3, inputs)
    swapped = inputs | {"keys": inputs["keys"][:, ::-1]}
    angles = np.arange(len(inputs["keys"]))[:, None, None] * 10.0 ** -np.arange(4)
    first, second = np.split(inputs["keys"].astype(np.float64), 2, axis=2)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = inputs | {"keys": np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)}
    for other in (swapped, turned):
        np.testing.assert_allclose(key_norms(np, other["keys"]), key_norms(np, inputs["keys"]), rtol=1e-12)
        np.testing.assert_array_equal(by_reference(op, 9, 3, other).keep_indices, found.keep_indices)


def test_text_similarity_is_that_of_the_texts_mean() -> None:
    """Visual rows do not count, the order of the text does not matter, and lengths of visual rows do not either."""
    inputs = random_inputs(12, 3, 4)
    hidden = inputs["hidden_states"].astype(np.float64)
    text = np.concatenate([hidden[:3], hidden[3 + N :]]).mean(0)
    visual = hidden[3 : 3 + N]
    cosines = visual @ text / np.linalg.norm(visual, axis=1) / np.linalg.norm(text)
    found = by_reference(TextSimilarityTopK(), 9, 3, inputs)
    np.testing.assert_allclose(found.details["scores"], cosines, rtol=0, atol=STEP)  # told apart from there on
    other = inputs["hidden_states"].copy()
    other[[0, 1, 2, -1]] = other[[-1, 2, 1, 0]]
    other[3 : 3 + N] *= np.linspace(0.1, 9, N, dtype=np.float32)[:, None]
    _, rows = by_onnx(TextSimilarityTopK(), 9, 3, inputs | {"hidden_states": other})
    np.testing.assert_array_equal(rows[3:12] - 3, found.keep_indices)


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=30), data=st.data())
@settings(max_examples=200, deadline=None)
def test_quotas_sum_up(counts: list[int], data: st.DataObject) -> None:
    """One round of corrections is always enough."""
    totals = data.draw(st.lists(st.integers(0, 9), min_size=len(counts), max_size=len(counts)))
    keep = data.draw(st.integers(len(counts), sum(counts)))
    quotas = quota(counts, [float(each) for each in totals], keep)
    assert sum(quotas) == keep - len(counts)
    assert all(0 <= own < count for own, count in zip(quotas, counts, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_op
def test_companions_lose_the_same_rows(op: Op, dtype: str) -> None:
    """Text and visual tokens: a row of the companion for every row of the sequence that is left."""
    model = model_of_op(op, sizes(9), dtype=dtype, companions={"deep": 5, "ids": 1})
    onnx.checker.check_model(model, full_check=True)
    run = run_stock(model)
    for start, behind in ((0, 4), (3, 0), (5, 9)):
        inputs = random_inputs(13, start, behind, dtype=dtype)
        rng, count = np.random.default_rng(1), start + N + behind
        companions = {
            each: rng.standard_normal((1, count, width)).astype(dtype) for each, width in [("deep", 5), ("ids", 1)]
        }
        found = run(**named(op, start, inputs), **companions)
        hidden, rows = by_onnx(op, 9, start, inputs)
        np.testing.assert_array_equal(found["rows"][0], rows)
        assert found["hidden_states_out"][0].tobytes() == hidden.tobytes()
        for each, value in companions.items():
            assert found[f"kept_{each}"].shape == (1, count - N + 9, value.shape[2])
            assert found[f"kept_{each}"][0].tobytes() == value[0, rows].tobytes()


@each_of(*TOP, ClusterMerge(clusters=23))
def test_tensorrt_rtx_builds_every_op(op: Op, tmp_path: Path) -> None:
    """In float16, for sequences of any length; without tensorrt_rtx this fails and is not skipped."""
    onnx.save(model_of_op(op, sizes(9), dtype="float16"), tmp_path / "op.onnx")
    shapes = {"hidden_states": [[1, rows, 24] for rows in (N, 40, 99)]}
    if "keys" in signals(op):
        shapes["keys"] = [[1, rows, 2, 8] for rows in (N, 40, 99)]
    job = Job(
        module="tensorrt_rtx",
        graph=str(tmp_path / "op.onnx"),
        engine=str(tmp_path / "engine"),
        profiles=[Profile(name="lengths", shapes=shapes)],
        compute_capabilities=[],
        parent=os.getpid(),
    )
    worker = [sys.executable, "-m", "vtexport.backends.trt.worker"]
    done = subprocess.run(worker, input=msgspec.json.encode(job), capture_output=True, check=False)
    assert (tmp_path / "engine").is_file(), done.stdout + done.stderr
    assert (tmp_path / "engine").stat().st_size > 1000
