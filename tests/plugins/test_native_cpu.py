"""The C++ form of the ops: the authors' vectors index for index, the reference on random inputs, any threads alike."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_ops.calls import Call, HostRunner, encoder_call
from native_ops.cases import RANDOM_KINDS, golden_case, golden_names, golden_types, random_case, svdprune_golden_case
from native_ops.compare import check, problems
from native_ops.inputs import fields

from vtexport.plugins.native import Executor, Run

SEEDS = 304
CHUNK = 38


@pytest.mark.parametrize("name", golden_names())
def test_golden_vectors(name: str, cpu: HostRunner) -> None:
    for dtype in golden_types(name):
        case = golden_case(name, dtype)
        found, unsteady = cpu.run_twice(case.call)  # over memory that was filled differently
        assert problems(case, found) + unsteady == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_svdprunes_defaults_on_the_golden_features(seed: int, cpu: HostRunner) -> None:
    case = svdprune_golden_case(seed, "float16")
    assert case.call.parameter("rank_bound") == 64
    assert check(cpu, case) == []


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_random_inputs_as_the_reference(first: int, cpu: HostRunner) -> None:
    sure: list[bool] = []
    for seed in range(first, first + CHUNK):
        case = random_case(seed)
        found, unsteady = cpu.run_twice(case.call)
        assert problems(case, found) + unsteady == []
        sure += case.sure.tolist()
    assert np.mean(sure) > 0.6, "cases that leave most open test little"


class Threads:
    """An executor that runs tasks on Python's threads, the last ones first."""

    def __init__(self, count: int) -> None:
        self.pool = ThreadPoolExecutor(count)
        self.used = 0

        def run(_context: Any, tasks: int, task: Any, argument: Any) -> None:
            self.used += 1
            list(self.pool.map(lambda index: task(argument, index), reversed(range(tasks))))

        self.run = Run(run)
        self.executor = Executor(self.run, None, count)


def outputs(cpu: HostRunner, call: Call, executor: Executor | None) -> dict[str, bytes]:
    prepared = cpu.prepare(call)
    status = cpu.library.call(call.op_type, call.sizes, call.parameters, prepared.addresses, executor=executor)
    assert status == 0
    return {name: values.tobytes() for name, values in cpu.results(prepared).items()}


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_any_number_of_threads_gives_the_same_bits(kind: str, cpu: HostRunner) -> None:
    for seed in (3, 4, 5):
        call = random_case(seed, kind).call
        alone = outputs(cpu, call, None)
        for count in (2, 3, 7):
            assert outputs(cpu, call, Threads(count).executor) == alone


@pytest.mark.parametrize("method", ["prunesid", "vitcop", "nuwa", "divprune", "cdpruner", "attention_topk"])
def test_a_full_image_is_shared_by_threads(method: str, cpu: HostRunner) -> None:
    name = next(each for each in golden_names() if each.startswith(method))
    call = golden_case(name, golden_types(name)[0]).call
    threads = Threads(3)
    assert outputs(cpu, call, threads.executor) == outputs(cpu, call, None)
    assert threads.used


@pytest.mark.parametrize(("tokens", "groups"), [((20, 20), 5), ((20, 20), 90), ((13, 17), 30), ((30, 31), 64)])
def test_eigenvectors_beyond_the_directly_solved_sizes(tokens: tuple[int, int], groups: int, cpu: HostRunner) -> None:
    """The Krylov basis against NumPy: energies and leverages of the leading directions, and the residual reported."""
    rng = np.random.default_rng(groups)
    features = fields(rng, tokens, 300, 1).astype(np.float32)
    call = encoder_call("svdprune", {"features": features}, keep=9, grid=tokens, rank=groups, center="none")
    found = cpu.run(call)
    assert found["residual"] <= 1e-6
    u, s, _ = np.linalg.svd(features[0].astype(np.float64), full_matrices=False)
    share = s**2 / np.sum(s**2)
    np.testing.assert_allclose(found["energy"], share[:groups].sum(), rtol=2e-6)
    gap = (share[groups - 1] - share[groups]) / share[0]
    expected = (u[:, :groups] ** 2).sum(1) / groups
    np.testing.assert_allclose(found["leverages"][0], expected, atol=2e-6 / groups / gap + 1e-7)


@pytest.mark.parametrize("copies", [3, 40])
def test_many_equal_eigenvalues(copies: int, cpu: HostRunner) -> None:
    """More equal eigenvalues than the block of the iteration has columns: their common space is found all the same."""
    tokens = copies * 12
    directions = np.eye(64)[:copies]
    small = 0.1 * np.eye(64)[copies : copies + 20]
    rows = np.concatenate([np.repeat(directions, 11, axis=0), np.resize(small, (tokens - 11 * copies, 64))])
    rng = np.random.default_rng(0)
    features = rows[None, rng.permutation(tokens)].astype(np.float32)
    call = encoder_call("svdprune", {"features": features}, keep=5, grid=(1, tokens), rank=copies, center="none")
    found = cpu.run(call)
    large = np.abs(features[0, :, :copies]).max(1) > 0.5
    np.testing.assert_allclose(found["leverages"][0], np.where(large, 1 / 11 / copies, 0), atol=1e-6)


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_other_instruction_sets(instructions: str, native_library: Path) -> None:
    """The loops for lesser CPUs, in a process of their own."""
    code = f"""
import sys
sys.path[:0] = {[path for path in sys.path if path]!r}
from pathlib import Path
from native_ops.calls import HostRunner
from native_ops.cases import golden_case, golden_names, golden_types, random_case
from native_ops.compare import problems
cpu = HostRunner(Path({str(native_library)!r}), "vtx_cpu_")
print(cpu.library.text("instructions"))
cases = [golden_case(name, golden_types(name)[0]) for name in golden_names()[::7]] + [*map(random_case, range(24))]
wrong = [each for case in cases for each in problems(case, cpu.run(case.call))]
sys.exit(str(wrong) if wrong else 0)
"""
    environment = {"VTEXPORT_INSTRUCTIONS": instructions, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (instructions, "baseline")  # no CPU but x86-64 has avx2
