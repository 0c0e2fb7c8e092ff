"""Findings about this machine: whether bundles run on it, by what, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from vtexport.backends.trt.flavour import TENSORRT_RTX
from vtexport.bundle.abilities import unmet
from vtexport.bundle.manifest import Needs
from vtexport.bundle.onnxruntime import abilities_of
from vtexport.dtypes import TensorType
from vtexport.errors import MissingDependencyError, quoted

# What a decoder graph of each variant needs that versions of ONNX Runtime differ in, the one to take first
_VARIANTS = {"modern": (23, ["Attention"]), "classic": (20, [])}
_PRECISIONS: tuple[TensorType, ...] = ("float32", "float16")
# benchmarks/results/native_cpu.json
_WITHOUT = "PruneSID's selection takes half as long with it"


@dataclass
class Finding:
    """One thing looked at; `ability` names what depends on it."""

    ability: Literal["run bundles", "run on a GPU", "build bundles", "build RTX engines", "information"]
    status: Literal["ok", "missing"]
    what: str
    next_step: str | None = None


def system() -> Finding:
    """Python, the system, and how much of a machine it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    what = (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"
    )
    return Finding("information", "ok", what)


def onnxruntime() -> Finding:
    """The installed ONNX Runtime and the graphs it runs rightly."""
    from vtexport.backends.onnxruntime.backend import import_onnxruntime

    try:
        runtime = import_onnxruntime()
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", "ONNX Runtime", str(error))
    providers = ", ".join(runtime.get_available_providers())
    what = f"ONNX Runtime {runtime.__version__} ({providers})"
    try:
        abilities = abilities_of(runtime.__version__)
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", what, str(error))
    runs, left_out = [], []
    for precision in _PRECISIONS:
        for variant, (opset, operators) in _VARIANTS.items():
            why = unmet(Needs(ir_version=10, opset=opset, operators=operators, types=[precision]), abilities)
            if why is None:
                runs.append(f"{precision} by their {variant} graphs")
                break
            left_out.append(f"{variant} graphs are left out in {precision}: {why}")
    step = f"{'; '.join(left_out)}; a newer version runs them, where there is one for this Python" if left_out else None
    return Finding("run bundles", "ok", f"{what} runs bundles: {', '.join(runs)}", step)


def native_library() -> Finding:
    """The form of the pruning ops that runs on the CPU, and what the other would change."""
    from vtexport.plugins.libraries import choose_library
    from vtexport.plugins.native import Library

    choice = choose_library()
    if choice.library is None:
        return Finding(
            "information",
            "ok",
            f"pruning ops run as ONNX function bodies, because the native library cannot: {choice.reason}",
            "run vtexport plugins build, which takes a C++ compiler and CMake; the answers are the same, and "
            + _WITHOUT,
        )
    try:
        instructions = Library(choice.library, "vtx_cpu_").text("instructions")
    except MissingDependencyError as error:
        return Finding("run bundles", "missing", "the native library of the pruning ops", str(error))
    return Finding("information", "ok", f"pruning ops run natively on the CPU ({instructions}): {choice.library}")


def gpu() -> Finding:
    """NVIDIA's GPUs, as nvidia-smi names them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    if shutil.which(query[0]):
        try:
            done = subprocess.run(
                query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True
            )
            shown = done.stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            return Finding("run on a GPU", "missing", "NVIDIA GPU", f"nvidia-smi failed: {quoted(error)}")
        if shown:
            return Finding("run on a GPU", "ok", f"NVIDIA GPU: {'; '.join(shown.splitlines())}")
    return Finding("run on a GPU", "missing", "NVIDIA GPU", "none is seen; --device cpu works without one")


def tensorrt_rtx_builder(has_gpu: bool) -> Finding:
    """TensorRT-RTX, which builds engines, and whether they run here."""
    ability: Literal["build RTX engines"] = "build RTX engines"
    try:
        TENSORRT_RTX.check_installed()
        import tensorrt_rtx
    except MissingDependencyError as error:
        return Finding(ability, "missing", "TensorRT-RTX", f"{error} to build engines here; that takes no GPU")
    except (ImportError, OSError) as error:  # its library is there and cannot be loaded
        step = f"{quoted(error)}; run pip install --force-reinstall 'vtexport[tensorrt-rtx]'"
        return Finding(ability, "missing", "TensorRT-RTX", step)
    running = "an NVIDIA GPU is there to run them" if has_gpu else "running them takes an NVIDIA GPU, and none is seen"
    return Finding(ability, "ok", f"TensorRT-RTX {tensorrt_rtx.__version__} builds engines here; {running}")


def bundle_trial(folder: str) -> Finding:
    """A short answer about a grey image by every plan of a bundle.

    Raises:
        VtexportError: the bundle cannot be opened, or a plan gives no answer.
    """
    import numpy as np

    from vtexport.bundle.reader import open_bundle
    from vtexport.runtime.pipeline import Pipeline

    bundle = open_bundle(folder)
    tried = []
    for plan in bundle.manifest.plans:
        image = np.full((336, 336, 3), 128, np.uint8)
        answer = Pipeline(bundle, plan.name).generate(image, "What is this?", max_new_tokens=4)
        tried.append(
            f"{plan.name}: {answer.visual_tokens} visual tokens, first token {answer.timings_ms['first_token']:.0f} ms"
        )
    return Finding("information", "ok", f"{folder} answers ({'; '.join(tried)})")
