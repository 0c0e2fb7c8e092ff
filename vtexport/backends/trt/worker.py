"""One engine from one ONNX file, in a process of its own: `python -m vtexport.backends.trt.worker`.

A process for each engine, because the first logger given to TensorRT stays for the whole process, its memory (about
three times the weights) goes back at once, and a crash ends nothing else. Where a job names a plugin library, its
plugins take the pruning ops' nodes; else their functions are inlined.

Reads a `Job` as JSON from stdin and writes an `Outcome` as JSON to stdout. It ends when the process that started it
ends, in whatever way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from vtexport.backends.record import Profile
from vtexport.backends.trt.flavour import FLAVOURS

NOT_LOADED = "the plugin library cannot be loaded"
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Job(msgspec.Struct, kw_only=True):
    """One engine to build."""

    module: str  # of the flavour
    graph: str  # path of the ONNX file, its weights beside it
    engine: str  # path to write
    profiles: list[Profile]
    compute_capabilities: list[str]  # names such as "SM89"; empty for a portable engine
    parent: int  # process id of the one that waits for the outcome
    plugins: str = ""  # path of a plugin library to load; "" for none


class Outcome(msgspec.Struct, kw_only=True):
    """`problems` is empty where the engine has been written; else it says why not, in the library's own words."""

    problems: list[str]
    version: str
    peak_memory_bytes: int = 0  # the largest resident memory of the process
    plugins: list[str] = []  # names of the engine's plugins, each once


def run_job(job: Job) -> Outcome:
    """Parses, builds and writes one engine. Types are the graph's own (strongly typed), without TF32."""
    trt = FLAVOURS[job.module].load()
    logged: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                logged.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    version = f"{job.module} {trt.__version__}"
    # Never given back: a registry without the library while a network has its plugins ends in a crash.
    if job.plugins and trt.get_plugin_registry().load_library(job.plugins) is None:
        said = " ".join(logged) or "its registry gave no reason"
        return Outcome(problems=[f"{NOT_LOADED}: {said}"], version=version)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.graph):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        refused = [f"{error.desc()} (node {error.node_name()}, {error.node_operator()})" for error in errors]
        return Outcome(problems=refused or logged or ["the file cannot be parsed"], version=version)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it changes which tokens a pruning op keeps
    if job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
        for number, name in enumerate(job.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), number)
    for given in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in given.shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            return Outcome(problems=[f"profile {given.name}: {' '.join(logged) or 'refused'}"], version=version)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Outcome(problems=logged or ["the builder gave no engine and no reason"], version=version)
    Path(job.engine).write_bytes(engine)
    return Outcome(problems=[], version=version, plugins=_plugins(trt, network))


def _plugins(trt: Any, network: Any) -> list[str]:
    """Names of the plugins that the parser has taken for nodes."""
    names = []
    for layer in (network.get_layer(number) for number in range(network.num_layers)):
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer
            names.append(layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE).plugin_name)
    return list(dict.fromkeys(names))


def end_with(parent: int) -> None:
    """Has the kernel end this process when `parent` has ended, be it by SIGKILL; ends at once where it has already.

    To the kernel the parent is the thread that started this process; here that is the one that waits for it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def peak_memory() -> int:
    """The largest resident memory of this process so far, bytes.

    Not getrusage's ru_maxrss: it survives exec, so a worker would report what its parent had when it was started.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    end_with(wanted.parent)
    outcome = run_job(wanted)
    outcome.peak_memory_bytes = peak_memory()
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
