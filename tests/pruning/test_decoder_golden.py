"""Steps inside the language model against the authors' code: index for index, in both forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtexport.pruning import ModelShape, Op, Selection, Sizes, get_method, make_options
from vtexport.pruning.onnx_op import model_of_op
from vtexport.pruning.ops.attention_topk import AttentionTopK
from vtexport.pruning.ops.cluster_merge import ClusterMerge, quota
from vtexport.pruning.ops.key_norm_topk import KeyNormTopK

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
START, SUFFIX = 35, 20
VITCOP = [
    (file.stem, case)
    for file in sorted(GOLDEN.glob("vitcop_*.npz"))
    for case in sorted({re.match("[0-9a-z]+", name)[0] for name in np.load(file).files if name.endswith("_params")})
]


def pool_rows(pool: np.ndarray, visual: int) -> np.ndarray:
    """The rows of a case with that many visual tokens: its prefix and visual rows, and the pool's last ones."""
    return np.concatenate([pool[: START + visual], pool[-SUFFIX:]])


def named(op: Op, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of the op, from inputs by name without their first axis."""
    given = {name: value[None] for name, value in inputs.items()} | {"visual_start": np.array([START])}
    return {each.name: given[each.name] for each in op.inputs()}


def run(stock: Any, op: Op, sizes: Sizes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs."""
    dtype = "float16" if inputs["hidden_states"].dtype == np.float16 else "float32"
    return stock(model_of_op(op, sizes, dtype=dtype))(**named(op, inputs))


def by_reference(op: Op, sizes: Sizes, inputs: dict[str, np.ndarray]) -> Selection:
    """The reference on NumPy arrays, after a look that PyTorch tensors give the same."""
    found = op.select(named(op, inputs), sizes)
    same = op.select({name: torch.from_numpy(value) for name, value in named(op, inputs).items()}, sizes)
    np.testing.assert_array_equal(same.keep_indices, found.keep_indices)
    np.testing.assert_allclose(same.kept_features, found.kept_features, rtol=1e-3)
    return found


def assert_kept(rows: np.ndarray, kept: np.ndarray, visual: int, total: int) -> None:
    """Text before and behind the image stays; the visual rows are the kept ones."""
    expected = np.concatenate([np.arange(START), START + kept, np.arange(START + visual, total)])
    np.testing.assert_array_equal(rows[0], expected)


@pytest.fixture(params=VITCOP, ids="-".join)
def vitcop(request: Any) -> tuple[Any, str]:
    file, case = request.param
    return np.load(GOLDEN / f"{file}.npz"), case


def test_all_cases_are_here() -> None:
    assert len(VITCOP) == 11


def test_vitcop_stage_2(vitcop: tuple[Any, str], stock: Any) -> None:
    file, case = vitcop
    labels, keep = file[f"{case}_labels"].astype(np.int64), int(file[f"{case}_n_S"])
    visual, heads = len(labels), file["k_shallow_pool"].shape[0]
    inputs = {
        "hidden_states": pool_rows(file["hidden_pool"], visual),
        "keys": np.stack([pool_rows(head, visual) for head in file["k_shallow_pool"]], axis=1),
        "labels": labels,
    }
    sizes = Sizes(batch=1, grid=(1, visual), keep=keep, width=256, heads=heads, kv_heads=heads, head_dim=128)
    op = ClusterMerge(clusters=len(file[f"{case}_centers"]))
    found = by_reference(op, sizes, inputs)
    expected = file[f"{case}_stage2_positions"][START:-SUFFIX] - START
    np.testing.assert_allclose(found.details["saliency"][0], file[f"{case}_saliency2"], rtol=1e-5)
    np.testing.assert_array_equal(found.keep_indices[0], expected)
    assert found.merged is not None
    np.testing.assert_array_equal(found.merged[0], file[f"{case}_stage2_is_merged"])
    if f"{case}_quotas" in file:
        np.testing.assert_array_equal(found.details["quotas"][0], file[f"{case}_quotas"])
    np.testing.assert_allclose(found.kept_features[0], file[f"{case}_stage2_visual"], rtol=2e-3, atol=2e-3)

    by_onnx = run(stock, op, sizes, inputs)
    assert_kept(by_onnx["rows"], expected, visual, len(inputs["hidden_states"]))
    block = by_onnx["hidden_states_out"][0, START : START + keep]
    np.testing.assert_allclose(block, file[f"{case}_stage2_visual"], rtol=2e-3, atol=2e-3)
    single = ~file[f"{case}_stage2_is_merged"]
    assert block[single].tobytes() == inputs["hidden_states"][START + expected[single]].tobytes()
    text = np.r_[0:START, START + keep : START + keep + SUFFIX]
    original = np.r_[0:START, START + visual : START + visual + SUFFIX]
    assert by_onnx["hidden_states_out"][0, text].tobytes() == inputs["hidden_states"][original].tobytes()


def test_vitcop_stage_3(vitcop: tuple[Any, str], stock: Any) -> None:
    file, case = vitcop
    visual, keep = int(file[f"{case}_n_S"]), int(file[f"{case}_n_P"])
    heads = file["k_deep_pool"].shape[0]
    keys = np.stack([pool_rows(head, visual) for head in file["k_deep_pool"]], axis=1)
    hidden = np.random.default_rng(0).standard_normal((len(keys), 16)).astype(np.float16)
    inputs = {"hidden_states": hidden, "keys": keys}
    sizes = Sizes(batch=1, grid=(1, visual), keep=keep, width=16, heads=heads, kv_heads=heads, head_dim=128)
    found = by_reference(KeyNormTopK(), sizes, inputs)
    np.testing.assert_allclose(-found.details["scores"][0], file[f"{case}_saliency3"], rtol=1e-5)
    np.testing.assert_array_equal(found.keep_indices[0], file[f"{case}_stage3_kept"])
    by_onnx = run(stock, KeyNormTopK(), sizes, inputs)
    assert_kept(by_onnx["rows"], file[f"{case}_stage3_kept"], visual, len(hidden))
    # As released: position ids behind the step are the rows' places in front of it.
    np.testing.assert_array_equal(by_onnx["rows"][0], file[f"{case}_stage3_position_ids"])


NUWA = [(f"nuwa_seed{seed}", f"N{keep}") for seed in (1, 2, 3) for keep in (64, 128, 192)]
FASTV = [(f"fastv_seed{seed}", f"N{keep}") for seed in (1, 2, 3) for keep in (32, 64, 128, 192, 288)]
ATTENTION = [
    *((stem, case, f"{case}_stage2_attention_last_row", f"{case}_stage2_kept") for stem, case in NUWA),
    *((stem, case, "attention_last_row", f"{case}_kept") for stem, case in FASTV),
]


@pytest.mark.parametrize(("stem", "case", "row", "kept"), ATTENTION, ids=lambda each: str(each))
def test_attention_of_the_last_token(stem: str, case: str, row: str, kept: str, stock: Any) -> None:
    """Nüwa's second stage and FastV. The files hold attention, so keys are made that give just this attention."""
    file = np.load(GOLDEN / f"{stem}.npz")
    attention, expected = file[row], file[kept].astype(int)
    heads, rows = attention.shape
    visual = rows - START - SUFFIX
    if stem.startswith("nuwa"):
        np.testing.assert_allclose(attention.mean(0)[START:-SUFFIX], file[f"{case}_stage2_scores"], rtol=1e-5)
    # With keys of width 2, q k / sqrt(2) is the attention's logarithm for q = (sqrt(2), 0) and k = (log a, 0).
    keys = np.zeros((rows, heads, 2), np.float32)
    keys[:, :, 0] = np.log(np.maximum(attention, 1e-30)).T
    query = np.zeros((heads, 2), np.float32)
    query[:, 0] = 2**0.5
    hidden = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    inputs = {"hidden_states": hidden, "keys": keys, "query": query}
    sizes = Sizes(batch=1, grid=(1, visual), keep=len(expected), width=8, heads=heads, kv_heads=heads, head_dim=2)
    found = by_reference(AttentionTopK(), sizes, inputs)
    np.testing.assert_array_equal(found.keep_indices[0], expected)
    by_onnx = run(stock, AttentionTopK(), sizes, inputs)
    assert_kept(by_onnx["rows"], expected, visual, rows)


@pytest.mark.parametrize(
    ("name", "keep", "entering", "steps"),
    [
        ("vitcop", 64, 172, [(2, 77), (22, 15)]),
        ("vitcop", 128, 230, [(2, 165), (22, 33)]),
        ("vitcop", 192, 288, [(2, 253), (22, 51)]),
        ("nuwa", 64, 112, [(16, 16)]),
        ("nuwa", 128, 224, [(16, 32)]),
        ("nuwa", 192, 336, [(16, 48)]),
        ("pyramiddrop", 270, 576, [(8, 288), (16, 144), (24, 72)]),
        ("fastv", 306, 576, [(2, 288)]),
    ],
)
def test_the_papers_presets(name: str, keep: int, entering: int, steps: list[tuple[int, int]]) -> None:
    """On 32 layers and 24 x 24 patches."""
    method = get_method(name)
    schedule = method.plan(make_options(method, {}), ModelShape((24, 24), layers=32), keep)
    assert schedule.visual_tokens == entering
    assert [(step.layer, step.keep) for step in schedule.steps] == steps


def test_quota_example() -> None:
    """Computed from the rules by another program."""
    assert quota([10, 5, 3, 1, 1], [9, 4, 3, 1, 1.2], 9) == [2, 1, 1, 0, 0]
