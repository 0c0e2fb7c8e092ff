"""The C structures in Python have the names, order and offsets that a C compiler makes of the header."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from vtexport.dtypes import DTYPES
from vtexport.plugins import op_structures, structures
from vtexport.plugins.native import Executor

ROOT = Path(__file__).parents[2]
FEATURE_TYPES = {name: each.native for name, each in DTYPES.items() if each.native is not None}
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "vtx_sizes": op_structures.NativeSizes,
    "vtx_tensors": op_structures.NativeTensors,
    "vtx_prunesid": op_structures.PruneSIDParameters,
    "vtx_svdprune": op_structures.SVDPruneParameters,
    "vtx_vitcop": op_structures.ViTCoPParameters,
    "vtx_nuwa": op_structures.NuwaParameters,
    "vtx_cdpruner": op_structures.CDPrunerParameters,
    "vtx_step_sizes": op_structures.NativeStepSizes,
    "vtx_step_tensors": op_structures.NativeStepTensors,
    "vtx_cluster_merge": op_structures.ClusterMergeParameters,
    "vtx_parallel": Executor,
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """A C program's reading of the headers."""
    folder = tmp_path_factory.mktemp("structures")
    lines = [f'  printf("{name} %zu\\n", sizeof({name}));' for name in STRUCTURES]
    lines += [
        f'  printf("{name}.{field[0]} %zu\\n", offsetof({name}, {field[0]}));'
        for name, structure in STRUCTURES.items()
        for field in structure._fields_
    ]
    numbers = [f"VTX_{status.name}" for status in structures.Status]
    numbers += [f"VTX_{name.upper()}" for name in FEATURE_TYPES] + ["VTX_ABI_VERSION"]
    lines += [f'  printf("{name} %d\\n", (int){name});' for name in numbers]
    body = "\n".join(lines)
    source = folder / "print.c"
    source.write_text(f'#include <stdio.h>\n#include "vtx_cpu.h"\nint main(void) {{\n{body}\n  return 0;\n}}\n')
    command = [os.environ.get("CC", "cc"), "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", str(source)]
    includes = [f"-I{ROOT / 'plugins' / each}" for each in ("include", "cpu")]
    subprocess.run([*command, *includes, "-o", str(folder / "print")], check=True)
    shown = subprocess.run([folder / "print"], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in (line.split() for line in shown.splitlines())}


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_layout(name: str, printed: dict[str, int]) -> None:
    structure = STRUCTURES[name]
    assert ctypes.sizeof(structure) == printed[name]
    for field, *_ in structure._fields_:
        assert getattr(structure, field).offset == printed[f"{name}.{field}"], field


def test_numbers(printed: dict[str, int]) -> None:
    assert printed["VTX_ABI_VERSION"] == op_structures.ABI_VERSION
    for status in structures.Status:
        assert status == printed[f"VTX_{status.name}"]
    for name, number in FEATURE_TYPES.items():
        assert number == printed[f"VTX_{name.upper()}"]
