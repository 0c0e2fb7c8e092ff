"""The CPU form built for aarch64, the architecture of Jetson, under an emulator; by hand (see CONTRIBUTING.md)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_machine import COMPILER, TARGET, EmulatedRunner, build_caller, emulator
from native_ops.cases import RANDOM_KINDS, golden_case, golden_names, golden_types, random_case
from native_ops.compare import problems

SWITCH = "VTEXPORT_TEST_AARCH64"
SEEDS = 12  # of each kind
MISSING = [name for name, found in ((COMPILER, shutil.which(COMPILER)), ("qemu-aarch64", emulator())) if not found]

pytestmark = [
    pytest.mark.skipif(not os.environ.get(SWITCH), reason=f"{SWITCH} is not set; the emulator takes minutes"),
    pytest.mark.skipif(bool(MISSING), reason=f"there is no {' and no '.join(MISSING)} here"),
]


@pytest.fixture(scope="module")
def aarch64(build_native: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> EmulatedRunner:
    folder = tmp_path_factory.mktemp("aarch64")
    settings = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "CXX_COMPILER": COMPILER}
    library = build_native("aarch64", *(f"-DCMAKE_{name}={value}" for name, value in settings.items()))
    program = build_caller(COMPILER, folder)
    return EmulatedRunner([emulator() or "", "-L", f"/usr/{TARGET}", str(program), str(library)], folder)


@pytest.mark.parametrize("name", golden_names())
def test_golden_vectors(name: str, aarch64: EmulatedRunner) -> None:
    types = golden_types(name)
    case = golden_case(name, types[golden_names().index(name) % len(types)])
    assert problems(case, aarch64.run(case.call)) == []


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random_inputs_as_the_reference(kind: str, aarch64: EmulatedRunner) -> None:
    for seed in range(SEEDS):
        case = random_case(seed, kind)
        found, unsteady = aarch64.run_twice(case.call)
        assert problems(case, found) + unsteady == []
