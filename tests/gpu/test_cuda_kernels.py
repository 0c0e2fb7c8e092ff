"""The CUDA kernels on an NVIDIA GPU: the answers, which `make gpu-check` looks at too, without what it measures.

They skip themselves where there is no GPU, no PyTorch with CUDA or no nvcc, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gpu_check.build import build
from gpu_check.environment import NotHereError, Tools, check_driver, check_gpu, find_tools
from gpu_check.hostile import hostile_cases
from gpu_check.parity import BATCH, common_calls, hostile_calls, step_calls
from gpu_check.sanitize import TOOLS, sanitize
from native_ops.calls import Call
from native_ops.cases import (
    LARGE,
    RANDOM_KINDS,
    golden_case,
    golden_names,
    golden_types,
    large_case,
    random_case,
    svdprune_golden_case,
)
from native_ops.compare import Case, check, check_batch

GOLDEN = [(name, dtype) for name in golden_names() for dtype in golden_types(name)]
SEEDS = 84  # of every kind of random case


@pytest.fixture(scope="module")
def tools() -> Tools:
    try:
        check_gpu()
        found = find_tools()
        check_driver(found)
        return found
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def runner(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import torch
    from gpu_check.device import GpuRunner

    capability = "{}.{}".format(*torch.cuda.get_device_capability(0))
    built = build(tools, capability, tmp_path_factory.mktemp("kernels"))
    assert built.spills == ()
    yield GpuRunner(built.library)
    torch.cuda.synchronize()


@pytest.mark.parametrize(("name", "dtype"), GOLDEN, ids=[f"{name}-{dtype}" for name, dtype in GOLDEN])
def test_golden(name: str, dtype: str, runner: Any) -> None:
    assert check(runner, golden_case(name, dtype)) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_svdprunes_defaults_on_golden_features(seed: int, runner: Any) -> None:
    assert check(runner, svdprune_golden_case(seed, "float16")) == []


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random(kind: str, runner: Any) -> None:
    assert [wrong for seed in range(SEEDS) for wrong in check(runner, random_case(seed, kind))] == []


@pytest.mark.parametrize("number", range(len(LARGE)), ids=lambda number: f"{LARGE[number][0]}-{number}")
def test_sizes_of_models(number: int, runner: Any) -> None:
    assert check(runner, large_case(number)) == []


@pytest.mark.parametrize("case", list(hostile_cases(hostile_calls())), ids=lambda case: case.name)
def test_hostile_inputs(case: Case, runner: Any) -> None:
    assert check(runner, case) == []


@pytest.mark.parametrize("number", range(7))
def test_a_batch_is_its_images(number: int, runner: Any) -> None:
    call = common_calls(BATCH)[number]
    assert check_batch(runner, call.op_type, call) == []


@pytest.mark.parametrize("number", range(11))
def test_a_graph_is_the_direct_call(number: int, runner: Any) -> None:
    from gpu_check.graphs import check_graph

    calls: list[Call] = [*common_calls(1), *step_calls()]
    assert check_graph(runner, calls[number]) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_checkers_of_memory_and_races(tool: str, tools: Tools, runner: Any) -> None:
    (found,) = sanitize(tools.sanitizer, runner.library.path, (tool,))
    if found["outcome"] in ("absent", "failed", "unfinished"):
        pytest.skip(f"{tool} is {found['outcome']}: {found['output'][-500:]}")
    assert found["outcome"] == "clean", found["output"]
