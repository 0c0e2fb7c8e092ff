"""Registers, spills and shared memory of every CUDA kernel for every architecture, as ptxas reports them; needs no GPU.

    python benchmarks/kernel_registers.py

Every source is compiled once to PTX for compute capability 8.0 and assembled for each architecture that nvcc knows of
those of plugins/kernels. Results go to benchmarks/results/kernel_registers.json. Exit code 1 if a kernel spills, 3 if
there is no nvcc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "plugins" / "kernels"
ARCHITECTURES = ("80", "86", "87", "89", "90", "100", "110", "120")


@dataclass(frozen=True)
class Kernel:
    """One kernel by ptxas' account; functions that it calls count as their own."""

    source: str
    name: str
    registers: int
    spilled_bytes: int


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def known_architectures(nvcc: str) -> list[str]:
    """Those of ARCHITECTURES that this compiler has."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [each for each in ARCHITECTURES if f"sm_{each}" in listed]


def compile_ptx(nvcc: str, folder: Path) -> list[Path]:
    """Every source as PTX.

    Raises:
        RuntimeError: A source does not compile without a warning; with the compiler's words.
    """
    includes = [f"-I{ROOT / 'plugins' / each}" for each in ("include", "common")]
    flags = ["-std=c++17", "-O3", "-arch=compute_80", "-Xcompiler=-Wall", "-Werror=all-warnings", *includes]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.ptx"
        done = subprocess.run([nvcc, *flags, "-ptx", str(source), "-o", str(target)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name}: {done.stdout}{done.stderr}")
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, sorted(KERNELS.glob("*.cu"))))


def assemble(nvcc: str, ptx: list[Path], architecture: str) -> list[Kernel]:
    """Every kernel's report for one architecture.

    Raises:
        RuntimeError: ptxas refuses a file; with its words.
    """
    ptxas = shutil.which("ptxas") or str(Path(nvcc).resolve().with_name("ptxas"))

    def assemble_one(source: Path) -> list[Kernel]:
        target = source.with_suffix(f".{architecture}.cubin")
        command = [ptxas, "-v", f"-arch=sm_{architecture}", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} for sm_{architecture}: {done.stdout}{done.stderr}")
        return list(_kernels(source.stem, done.stdout + done.stderr))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [kernel for found in pool.map(assemble_one, ptx) for kernel in found]


def _kernels(source: str, report: str) -> list[Kernel]:
    found: list[Kernel] = []
    name, spilled = "", 0
    for line in report.splitlines():
        entry = re.search(r"(?:Compiling entry function|Function properties for) '?([^' ]+)", line)
        if entry:
            name = entry[1]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spills:
            spilled = int(spills[1]) + int(spills[2])
            if spilled and (not found or found[-1].name != name):
                found.append(Kernel(source, name, 0, spilled))
        used = re.search(r"Used (\d+) registers", line)
        if used:
            found = [each for each in found if each.name != name]
            found.append(Kernel(source, name, int(used[1]), spilled))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "benchmarks" / "results" / "kernel_registers.json"
    parser.add_argument("-o", "--output", type=Path, default=default)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("there is no nvcc; install a CUDA toolkit from 12.6 on", file=sys.stderr)
        return 3
    version = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout.strip().splitlines()
    )
    with tempfile.TemporaryDirectory() as folder:
        ptx = compile_ptx(nvcc, Path(folder))
        found = {each: assemble(nvcc, ptx, each) for each in known_architectures(nvcc)}
    names = sorted({(kernel.source, kernel.name) for kernels in found.values() for kernel in kernels})
    print(
        f"{'source':14} {'kernel':42} " + " ".join(f"{'sm_' + each:>7}" for each in found) + "  (registers; S: spills)"
    )
    spills = 0
    for source, name in names:
        cells = []
        for kernels in found.values():
            own = next((each for each in kernels if (each.source, each.name) == (source, name)), None)
            spills += bool(own and own.spilled_bytes)
            cells.append(f"{'' if own is None else str(own.registers) + ('S' if own.spilled_bytes else ''):>7}")
        print(f"{source:14} {_short(name):42} " + " ".join(cells))
    report = {architecture: [asdict(each) for each in kernels] for architecture, kernels in found.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"nvcc": version[-1], "kernels": report}, indent=1) + "\n")
    print(f"{len(names)} kernels, {spills} with spills; written to {arguments.output}")
    return 1 if spills else 0


def _short(mangled: str) -> str:
    """The last name of a mangled one."""
    parts, rest = [], mangled.removeprefix("_ZN")
    while match := re.match(r"(\d+)", rest):
        size = int(match[1])
        parts.append(rest[len(match[1]) : len(match[1]) + size])
        rest = rest[len(match[1]) + size :]
    return parts[-1] if parts else mangled


if __name__ == "__main__":
    sys.exit(main())
