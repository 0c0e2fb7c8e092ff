"""Needs of the check, and what is there: GPU, driver, PyTorch, nvcc."""

from __future__ import annotations

import ctypes
import datetime
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory,ecc.mode.current"


class NotHereError(Exception):
    """Something that gpu-check needs is not on this machine; the sentence says what, and what to do."""


@dataclass(frozen=True)
class Tools:
    """The compiler and, where they exist, CMake and compute-sanitizer."""

    nvcc: Path
    cmake: Path | None
    sanitizer: Path | None


def find_tools() -> Tools:
    """Tools on the path or in the usual places of a CUDA toolkit.

    Raises:
        NotHereError: There is no nvcc.
    """
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [home / "bin" for home in [*homes, Path("/usr/local/cuda")]]
    nvcc = _find("nvcc", folders, os.environ.get("CUDACXX"))
    if nvcc is None:
        raise NotHereError(
            "gpu-check needs nvcc, which is not on the path nor in /usr/local/cuda/bin; install a CUDA toolkit from "
            "12.6 on, or set CUDA_HOME"
        )
    toolkit = nvcc.resolve().parent
    sanitizer = _find("compute-sanitizer", [*folders, toolkit, toolkit.parent / "compute-sanitizer"])
    return Tools(nvcc, _find("cmake", []), sanitizer)


def _find(name: str, folders: list[Path], given: str | None = None) -> Path | None:
    if given and Path(given).is_file():
        return Path(given)
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def check_gpu() -> None:
    """Looks for PyTorch with CUDA and a GPU.

    Raises:
        NotHereError: One is missing; with the reason.
    """
    if importlib.util.find_spec("torch") is None:
        raise NotHereError("gpu-check needs PyTorch, which this Python does not have; set PYTHON to one that has it")
    import torch

    if torch.version.cuda is None:
        raise NotHereError(
            f"gpu-check needs a PyTorch with CUDA, which {torch.__version__} has not; set PYTHON to one that has it"
        )
    if not torch.cuda.is_available():
        raise NotHereError(
            "gpu-check needs an NVIDIA GPU that PyTorch can use, and there is none here; run it on a machine with one"
        )


def check_driver(tools: Tools) -> None:
    """Programs of one CUDA generation run on drivers of that generation or a later one.

    Raises:
        NotHereError: nvcc is of a later generation than the driver, so nothing that it builds would run.
    """
    release = re.search(r"release (\d+)", _output([str(tools.nvcc), "--version"]))
    driver = driver_cuda()
    if release and driver and int(release[1]) > driver[0]:
        raise NotHereError(
            f"gpu-check needs an nvcc no newer than the driver: {tools.nvcc} is of CUDA {release[1]}, and this driver "
            f"knows CUDA up to {driver[0]}.{driver[1]}; set CUDA_HOME to an older toolkit (12.6 or newer), or update "
            "the driver"
        )


def driver_cuda(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, such as (12, 6); None where it cannot be asked."""
    found = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return None if failed or not found.value else (found.value // 1000, found.value % 1000 // 10)


def describe(tools: Tools) -> dict[str, Any]:
    """The machine, for the results file."""
    import numpy as np
    import torch

    properties = torch.cuda.get_device_properties(0)
    asked = _output(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"])
    values = dict(zip(QUERY.split(","), (each.strip() for each in asked.split("\n")[0].split(",")), strict=False))
    return {
        "gpu_name": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(0)),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": l2_bytes(),
        "memory_bytes": properties.total_memory,
        "driver": values.get("driver_version", ""),
        "nvidia_smi": values,
        "cuda_of_driver": ".".join(map(str, driver_cuda() or ())),
        "cuda_of_torch": torch.version.cuda,
        "nvcc": _output([str(tools.nvcc), "--version"]).strip().split("\n")[-1],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]).strip(),
    }


def l2_bytes() -> int:
    """Of the GPU; 128 MiB where this PyTorch does not say, more than any has today."""
    import torch

    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 128 << 20


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
