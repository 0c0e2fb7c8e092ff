"""Results of the CUDA kernels, from their own sources, where there is no GPU (see `emulation/cuda_emulation.h`).

Speed, memory order and CUDA's own behaviour are not part of it: tests/gpu looks at those on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_kernels import build
from gpu_check.parity import step_calls
from native_ops.calls import Call, HostRunner, encoder_call
from native_ops.cases import (
    RANDOM_KINDS,
    STEPS,
    golden_case,
    golden_names,
    golden_types,
    random_case,
    svdprune_golden_case,
)
from native_ops.compare import check, check_batch, problems

pytestmark = pytest.mark.long

NAMES = golden_names()
# Half of the types each: the features are exact in all of them.
GOLDEN = [(name, golden_types(name)[number % len(golden_types(name))]) for number, name in enumerate(NAMES)]
SEEDS = 3
SMALL, WIDTH = (6, 7), 40


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> HostRunner:
    return HostRunner(build(tmp_path_factory.mktemp("emulated")), "vtx_cuda_")


@pytest.mark.parametrize(("name", "dtype"), GOLDEN, ids=[f"{name}-{dtype}" for name, dtype in GOLDEN])
def test_golden_vectors_index_for_index(name: str, dtype: str, runner: HostRunner) -> None:
    case = golden_case(name, dtype)
    assert problems(case, runner.run(case.call)) == []


def test_svdprunes_defaults_on_golden_features(runner: HostRunner) -> None:
    assert check(runner, svdprune_golden_case(1, "float16")) == []


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random_inputs_as_the_reference_where_margins_decide(kind: str, runner: HostRunner) -> None:
    """Two runs each, with poisoned outputs: everything is written, and the same."""
    assert [wrong for seed in range(SEEDS) for wrong in check(runner, random_case(seed, kind))] == []


@pytest.mark.parametrize("seed", [115, 132])
def test_rotations_bear_the_error_of_quick_reciprocals(seed: int, runner: HostRunner) -> None:
    """The emulation gives them all the error that CUDA allows; vectors whose cosines had it lost their residual."""
    assert check(runner, random_case(seed, "prunesid")) == []


def test_eigenvalues_that_are_nearly_equal_converge(runner: HostRunner) -> None:
    """Forty within some percent of each other, of which sixteen are wanted and the block holds thirty-two."""
    assert check(runner, random_case(156, "svdprune")) == []


ENCODER_KINDS = [kind for kind in RANDOM_KINDS if kind not in STEPS]


def _calls(batch: int) -> list[Call]:
    """Of every op behind the vision tower one on small sizes."""
    fixed: dict[str, Any] = {"grid": SMALL, "width": WIDTH, "batch": batch, "dtype": "float32"}
    return [random_case(11, kind, **fixed).call for kind in ENCODER_KINDS]


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_a_batch_is_its_images_one_by_one(kind: str, runner: HostRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTX_EMULATION_BLOCKS", "4")  # fewer than the images' blocks together: they take turns
    call = random_case(2, kind, grid=(9, 12), width=56, batch=3, dtype="float16").call
    assert check_batch(runner, call.op_type, call) == []


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_the_order_of_threads_changes_nothing(seed: str, runner: HostRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads change places at barriers only, so a missing one would show here."""
    for call in [*_calls(2), *step_calls()]:
        straight = runner.run(call)
        monkeypatch.setenv("VTX_EMULATION_SEED", seed)
        shuffled = runner.run(call)
        monkeypatch.delenv("VTX_EMULATION_SEED")
        for name, values in straight.items():
            assert values.tobytes() == shuffled[name].tobytes(), (call.op_type, name)


HOSTILE: dict[str, Any] = {
    "zero": np.zeros_like,
    "equal": lambda x: np.full_like(x, 0.3),
    "nan": lambda x: np.full_like(x, np.nan),
    "some nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 7 == 0, np.nan, x).astype(x.dtype),
    "infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 5 == 0, np.inf, x).astype(x.dtype),
    "huge": lambda x: (x * 1e30).astype(x.dtype),
    "tiny": lambda x: (x * 1e-38).astype(x.dtype),
    "one row": lambda x: np.where(np.arange(x.shape[1])[:, None] == 3, x, 0).astype(x.dtype) if x.ndim == 3 else x,
    "rank 1": lambda x: (x[..., :1] * np.ones_like(x)).astype(x.dtype),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_any_input_gives_a_valid_selection(kind: str, runner: HostRunner) -> None:
    for call in _calls(1):
        inputs = {
            name: np.ascontiguousarray(HOSTILE[kind](value)) if value.dtype == np.float32 else value
            for name, value in call.inputs.items()
        }
        kept = runner.run(replace(call, inputs=inputs))["keep_indices"]
        patches = kept[kept >= 0].tolist()
        assert len(set(patches)) == len(patches) >= kept.size - 1, call.op_type
        assert all(0 <= each < SMALL[0] * SMALL[1] for each in patches), call.op_type


@pytest.mark.parametrize("keep", [64, 256, 576])
def test_many_components(keep: int, runner: HostRunner) -> None:
    """Beyond what fits in shared memory, and as many vectors as tokens."""
    case = random_case(3, "prunesid", grid=(24, 24), width=64, batch=1, dtype="float32", keep=keep)
    assert check(runner, case) == []


def test_memory_is_clean(tmp_path: Path) -> None:
    """Every op on small sizes with AddressSanitizer and UndefinedBehaviorSanitizer: no access outside its memory."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1"]
    library = build(tmp_path, *flags)
    runtime = [_runtime(name) for name in ("libasan.so", "libubsan.so")]
    done = subprocess.run(
        [sys.executable, "-m", "run_every_op", str(library)],
        env={
            "LD_PRELOAD": ":".join(runtime),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "PYTHONPATH": ":".join(sys.path),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "every op ran" in done.stdout


def _runtime(name: str) -> str:
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return found


def test_workspace_is_checked(runner: HostRunner) -> None:
    call = encoder_call("divprune", {"features": np.ones((1, 42, 40), np.float32)}, keep=8, grid=SMALL, dtype="float32")
    library = runner.library
    sizes, parameters = call.sizes, call.parameters
    status, size = library.workspace_bytes(call.op_type, sizes, parameters)
    assert status.name == "OK"
    prepared = runner.prepare(call)
    addresses = prepared.addresses
    memory = np.zeros(size + 512, np.uint8)
    start = -(-memory.ctypes.data // 256) * 256

    def status_of(at: int | None, bytes_: int) -> str:
        return library.call(call.op_type, sizes, parameters, addresses, workspace=at, workspace_bytes=bytes_).name

    assert status_of(start, size) == "OK"
    assert status_of(start, size - 1) == "SMALL_WORKSPACE"
    assert status_of(start + 4, size) == "MISALIGNED"
    assert status_of(None, size) == "NULL_POINTER"
    without = library.call(call.op_type, sizes, parameters, None, workspace=start, workspace_bytes=size)
    assert without.name == "NULL_POINTER"
