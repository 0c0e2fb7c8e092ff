"""Steps inside the language model against the authors' code: index for index, in both forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtexport.pruning import get_method, make_parameters
from vtexport.pruning.llm.attention_topk import AttentionTopK
from vtexport.pruning.llm.cluster_merge import ClusterMerge, ClusterMergeParameters, quota
from vtexport.pruning.llm.key_norm_topk import KeyNormTopK
from vtexport.pruning.llm.op import llm_op_model
from vtexport.pruning.llm.step import LLMSizes

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


def run(stock: Any, op: Any, parameters: Any, sizes: LLMSizes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs, for inputs by name without their first axis."""
    dtype = "float16" if inputs["hidden_states"].dtype == np.float16 else "float32"
    named = {name: inputs[name][None] for name in ("hidden_states", *op.signals)}
    return stock(llm_op_model(op, parameters, sizes, dtype=dtype))(visual_start=np.array([START]), **named)


def by_reference(op: Any, parameters: Any, sizes: LLMSizes, inputs: dict[str, np.ndarray]) -> Any:
    """The reference on NumPy arrays, after a look that PyTorch tensors give the same."""
    signals = {name: inputs[name] for name in op.signals}
    found = op.select(inputs["hidden_states"], START, signals, sizes=sizes, parameters=parameters)
    tensors = {name: torch.from_numpy(value) for name, value in signals.items()}
    hidden = torch.from_numpy(inputs["hidden_states"])
    same = op.select(hidden, START, tensors, sizes=sizes, parameters=parameters)
    np.testing.assert_array_equal(same.kept, found.kept)
    np.testing.assert_allclose(same.rows, found.rows, rtol=1e-3)
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
    sizes = LLMSizes(tokens=visual, keep=keep, width=256, heads=heads, kv_heads=heads, head_dim=128)
    parameters = ClusterMergeParameters(clusters=len(file[f"{case}_centers"]))
    found = by_reference(ClusterMerge(), parameters, sizes, inputs)
    expected = file[f"{case}_stage2_positions"][START:-SUFFIX] - START
    np.testing.assert_allclose(found.details["saliency"], file[f"{case}_saliency2"], rtol=1e-5)
    np.testing.assert_array_equal(found.kept, expected)
    np.testing.assert_array_equal(found.merged, file[f"{case}_stage2_is_merged"])
    if f"{case}_quotas" in file:
        np.testing.assert_array_equal(found.details["quotas"], file[f"{case}_quotas"])
    np.testing.assert_allclose(found.rows, file[f"{case}_stage2_visual"], rtol=2e-3, atol=2e-3)

    by_onnx = run(stock, ClusterMerge(), parameters, sizes, inputs)
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
    sizes = LLMSizes(tokens=visual, keep=keep, width=16, heads=heads, kv_heads=heads, head_dim=128)
    found = by_reference(KeyNormTopK(), None, sizes, inputs)
    np.testing.assert_allclose(-found.details["scores"], file[f"{case}_saliency3"], rtol=1e-5)
    np.testing.assert_array_equal(found.kept, file[f"{case}_stage3_kept"])
    by_onnx = run(stock, KeyNormTopK(), None, sizes, inputs)
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
    sizes = LLMSizes(tokens=visual, keep=len(expected), width=8, heads=heads, kv_heads=heads, head_dim=2)
    found = by_reference(AttentionTopK(), None, sizes, inputs)
    np.testing.assert_array_equal(found.kept, expected)
    by_onnx = run(stock, AttentionTopK(), None, sizes, inputs)
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
    schedule = method.schedule(make_parameters(method, {}), grid=(24, 24), keep=keep, layers=32)
    assert schedule.visual_tokens == entering
    assert [(step.layer, step.keep) for step in schedule.steps] == steps


def test_quota_example() -> None:
    """Computed from the rules by another program."""
    assert quota([10, 5, 3, 1, 1], [9, 4, 3, 1, 1.2], 9) == [2, 1, 1, 0, 0]
