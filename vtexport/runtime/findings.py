"""Findings about this machine: whether bundles run on it, by what, and what is missing for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from vtexport.backends.registry import open_backend, runtimes
from vtexport.backends.targets import list_targets
from vtexport.backends.trt.flavour import TENSORRT_RTX
from vtexport.bundle.abilities import unmet
from vtexport.bundle.manifest import Needs
from vtexport.bundle.onnxruntime import abilities_of
from vtexport.dtypes import TensorType
from vtexport.errors import MissingDependencyError, VtexportError, quoted

# What a decoder graph of each variant needs that versions of ONNX Runtime differ in, the one to take first
_VARIANTS = {"modern": (23, ["Attention"]), "classic": (20, [])}
_PRECISIONS: tuple[TensorType, ...] = ("float32", "float16")
# benchmarks/results/native_cpu.json
_WITHOUT = "PruneSID's selection takes half as long with it"


@dataclass
class Finding:
    """One thing looked at; `ability` names what depends on it."""

    ability: Literal[
        "run bundles", "run on a GPU", "build bundles", "build RTX engines", "measure energy", "information"
    ]
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


def backends() -> list[Finding]:
    """Each runtime that a target may name, and the devices on which vtexport runs bundles by it."""
    said = []
    for name, runtime in runtimes().items():
        if runtime.open is None:
            does = "builds its engines and runs none" if runtime.compile else "neither builds nor runs its engines yet"
            said.append(Finding("information", "ok", f"backend {name}: vtexport {does}"))
            continue
        for device in ("cpu", "cuda"):
            what = f"backend {name} on {device}"
            try:
                open_backend(name, device).close()
            except VtexportError as error:
                said.append(Finding("run on a GPU" if device == "cuda" else "run bundles", "missing", what, str(error)))
            else:
                said.append(Finding("information", "ok", f"{what} can be opened"))
    return said


def tensorrt() -> list[Finding]:
    """The TensorRT that is installed against those of the targets' recipes; empty where there is none."""
    try:
        version = importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return []
    recipes = {target.name: target.tensorrt for target in list_targets() if target.tensorrt}
    fit = [name for name, of in recipes.items() if version.split(".")[: of.count(".") + 1] == of.split(".")]
    if fit:
        return [Finding("information", "ok", f"TensorRT {version} is that of {', '.join(fit)}")]
    known = ", ".join(f"{of} ({name})" for name, of in recipes.items())
    step = "an engine runs with the version that built it; vtexport list targets has the recipes"
    return [Finding("information", "ok", f"TensorRT {version} is that of no target: {known}", step)]


def telemetry() -> Finding:
    """Reports that libraries would send of themselves; vtexport has none."""
    switch = os.environ.get("ORT_DISABLE_TELEMETRY", "")  # vtexport sets it to 1 where nobody has set it
    ort = "is off (ORT_DISABLE_TELEMETRY is 1)" if switch == "1" else f"is as ORT_DISABLE_TELEMETRY={switch} has it"
    yes = {"1", "ON", "YES", "TRUE"}
    switches = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    off = [name for name in switches if os.environ.get(name, "").strip().upper() in yes]
    hub = f"off ({off[0]} is set)" if off else "on: builds that fetch a model tell the hub PyTorch's version, too"
    step = None if off else "set HF_HUB_DISABLE_TELEMETRY=1 to turn it off"
    what = f"telemetry: vtexport has none; ONNX Runtime's {ort}; huggingface_hub's is {hub}"
    return Finding("information", "ok", what, step)
