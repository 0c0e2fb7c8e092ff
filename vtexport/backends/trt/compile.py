"""Engines of a bundle's graphs by TensorRT or TensorRT-RTX; the latter builds them ahead of time, without a GPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from vtexport.backends.recipe import Target
from vtexport.backends.record import (
    FOLDER,
    RECORD_NAME,
    SCHEMA_VERSION,
    TEXT_TOKENS,
    Engine,
    Engines,
    PluginLibrary,
    encode,
)
from vtexport.backends.trt.flavour import FLAVOURS, Flavour
from vtexport.backends.trt.plugin import environment, plugin_for
from vtexport.backends.trt.profiles import profiles
from vtexport.backends.trt.worker import NOT_LOADED, Job, Outcome
from vtexport.bundle.abilities import choose_graphs
from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest import MANIFEST_NAME, File
from vtexport.bundle.publish import staged
from vtexport.bundle.reader import Bundle
from vtexport.bundle.unfinished import written_by
from vtexport.dtypes import DTYPES
from vtexport.errors import UsageError, VtexportError, quoted
from vtexport.plugins.libraries import SWITCH

_WORKER = [sys.executable, "-m", "vtexport.backends.trt.worker"]
# How C++, Python and TensorRT say it, in lower case.
_OUT_OF_MEMORY = ("bad_alloc", "memoryerror", "out of memory", "outofmemory")
# In TensorRT's messages: its own function, a number, and places in its sources.
_PLACES = re.compile(r"^\w+::\w+: Error Code \d+: |\[[\w.]+:\d+: \w+\] | In \w+ at /_src/[^\s)]+")


class EngineCompiler:
    """Builds the engines of a bundle by one flavour (`backends.base.Compile`)."""

    def __init__(self, flavour: Flavour):
        self._flavour = flavour

    def check(self, target: Target, capabilities: Sequence[str]) -> None:
        """Refuses compute capabilities that no engine of `target` can be built for, or a library that is not there.

        Raises:
            UsageError: a capability is not known, or named twice.
            MissingDependencyError: the library is not installed.
        """
        self._check_capabilities(target, capabilities)
        self._flavour.check_installed()

    def _check_capabilities(self, target: Target, capabilities: Sequence[str]) -> None:
        title = self._flavour.title
        if capabilities and not self._flavour.names_capabilities:
            raise UsageError(f"{title} builds for the GPU it runs on; leave --compute-capability out")
        for capability in capabilities:
            if capability not in target.compute_capabilities:
                known = ", ".join(target.compute_capabilities)
                raise UsageError(f"compute capability {capability!r} is not one of {title}'s; give some of {known}")
            if list(capabilities).count(capability) > 1:
                raise UsageError(f"compute capability {capability} is given twice")

    def __call__(
        self,
        bundle: Bundle,
        target: Target,
        capabilities: Sequence[str] = (),
        text_tokens: int = TEXT_TOKENS,
        stage: Callable[[str], None] = lambda text: None,
    ) -> Engines:
        """Builds an engine of every graph that the bundle's plans run and puts them in place whole.

        Args:
            bundle: an exported bundle in a precision of the target; its manifest and its files are not changed.
            target: a recipe with this flavour's runtime.
            capabilities: compute capabilities such as "8.9"; a portable engine when empty.
            text_tokens: the longest text that a prefill takes beside the image.
            stage: called with a line before each engine.

        Raises:
            UsageError: the bundle's precision, a capability or a length does not fit.
            MissingDependencyError: the library is not installed.
            VtexportError: the library does not take a graph; with its own sentence.
        """
        self._check_capabilities(target, capabilities)
        self._check_precision(bundle, target, capabilities)
        manifest = bundle.manifest
        chosen = [choose_graphs(manifest, plan, target.abilities) for plan in manifest.plans]
        wanted = list(dict.fromkeys(name for graphs in chosen for name in graphs.names))  # as they run, each once
        ranges = {name: profiles(manifest, manifest.graphs[name], text_tokens) for name in wanted}
        self._flavour.check_installed()
        plugin = plugin_for(capabilities)
        native = plugin.library.absolute() if plugin.library is not None else None
        stage(f"pruning ops as plugins of {native}" if native else f"pruning ops as ONNX functions ({plugin.reason})")
        engines, version = {}, ""
        with staged(bundle.folder / FOLDER / target.name, marker=RECORD_NAME) as folder:
            for number, name in enumerate(wanted, 1):
                stage(f"building engine {number} of {len(wanted)}: {name}")
                file = f"{name}.engine"
                job = Job(
                    module=self._flavour.module,
                    graph=str(bundle.path(manifest.graphs[name].file).absolute()),
                    engine=str(folder / file),
                    profiles=ranges[name],
                    compute_capabilities=["SM" + capability.replace(".", "") for capability in capabilities],
                    parent=os.getpid(),
                    plugins=str(native or ""),
                )
                outcome = build_engine(job, name)
                version = outcome.version
                described = _describe(folder / file)
                engines[name] = Engine(
                    file=file,
                    bytes=described.bytes,
                    sha256=described.sha256,
                    profiles=ranges[name],
                    peak_memory_bytes=outcome.peak_memory_bytes,
                    plugins=outcome.plugins,
                )
            record = Engines(
                schema_version=SCHEMA_VERSION,
                target=target.name,
                builder=version,
                compute_capabilities=list(capabilities),
                precision=manifest.precision,
                manifest_sha256=_describe(bundle.path(MANIFEST_NAME)).sha256,
                plugin_library=_describe_plugins(native, engines),
                engines=engines,
            )
            (folder / RECORD_NAME).write_bytes(encode(record))
        return record

    def _check_precision(self, bundle: Bundle, target: Target, capabilities: Sequence[str]) -> None:
        precision = DTYPES[bundle.manifest.precision].precision
        if precision not in target.precisions:
            why = (
                ""
                if self._flavour.float32
                else f" ({self._flavour.title} has no float32 attention for lengths that vary)"
            )
            raise UsageError(
                f"{bundle.folder} is in {precision} and target {target.name} takes {' or '.join(target.precisions)}"
                f"{why}; build the bundle with --precision {target.precisions[0]}"
            )
        if precision == "bf16" and "7.5" in capabilities:
            raise UsageError(
                "compute capability 7.5 has no bfloat16; leave it out or build the bundle with --precision fp16"
            )


def _describe_plugins(library: Path | None, engines: Mapping[str, Engine]) -> PluginLibrary | None:
    if library is None or not any(engine.plugins for engine in engines.values()):
        return None
    described = _describe(library)
    return PluginLibrary(file=library.name, bytes=described.bytes, sha256=described.sha256)


def build_engine(job: Job, name: str) -> Outcome:
    """Builds the engine of the graph `name` in a process of its own, which ends when this one does.

    Raises:
        VtexportError: the library does not take the graph, or the process ended without an outcome.
    """
    pipe = subprocess.PIPE
    with (
        environment(FLAVOURS[job.module]) as variables,
        subprocess.Popen(_WORKER, stdin=pipe, stdout=pipe, stderr=pipe, env=variables) as process,
        written_by(process),
    ):
        answer, output = process.communicate(msgspec.json.encode(job))
    if process.returncode != 0:
        raise VtexportError(describe_ending(name, process.returncode, output.decode(errors="replace").strip()))
    outcome = msgspec.json.decode(answer, type=Outcome)
    if outcome.problems:
        first = _PLACES.sub("", outcome.problems[0])
        if _is_out_of_memory(" ".join(outcome.problems)):
            raise VtexportError(_lack_of_memory(name, quoted(first, limit=100)))
        more = f" (and {len(outcome.problems) - 1} more)" if len(outcome.problems) > 1 else ""
        hint = "the bundle's graphs still run in ONNX Runtime"
        if first.startswith(NOT_LOADED):
            hint = f"{SWITCH}=0 builds the ops' functions instead"
        if "SM75" in job.compute_capabilities and "Turing" in outcome.problems[0]:
            hint = "compute capability 7.5 cannot run this graph, leave it out"
        raise VtexportError(f"{outcome.version} does not take {name}: {quoted(first, name, limit=150)}{more}; {hint}")
    return outcome


def describe_ending(name: str, returncode: int, output: str) -> str:
    """The sentence about a process that ended without an outcome."""
    last = quoted((output.splitlines() or ["it said nothing"])[-1], limit=100)
    ended = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    if returncode == -signal.SIGKILL:
        return _lack_of_memory(name, f"{ended}, which is how Linux ends a process when memory is short")
    if _is_out_of_memory(output):
        return _lack_of_memory(name, f"{ended}: {last}")
    return f"the process that built the engine of {name} ended with {ended}: {last}; run it again, and report this"


def _is_out_of_memory(output: str) -> bool:
    return any(words in output.lower() for words in _OUT_OF_MEMORY)


def _lack_of_memory(name: str, how: str) -> str:
    return (
        f"the memory did not suffice to build the engine of {name} ({how}); it takes about three times the weights: "
        "end other programs, or compile on a machine with more memory"
    )


def _describe(path: Path) -> File:
    return File(bytes=path.stat().st_size, sha256=hash_file(path))
