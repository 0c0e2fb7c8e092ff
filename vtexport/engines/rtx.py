"""TensorRT-RTX engines of a bundle's graphs, built ahead of time; that needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.manifest import MANIFEST_NAME, File
from vtexport.bundle.publish import staged
from vtexport.bundle.reader import Bundle
from vtexport.bundle.unfinished import written_by
from vtexport.dtypes import DTYPES
from vtexport.engines.profiles import TEXT_TOKENS, profiles
from vtexport.engines.record import FOLDER, RECORD_NAME, SCHEMA_VERSION, Engine, Engines, encode
from vtexport.engines.rtx_worker import Job, Outcome
from vtexport.engines.targets import Target
from vtexport.errors import MissingDependencyError, UsageError, VtexportError, quoted

_WORKER = [sys.executable, "-m", "vtexport.engines.rtx_worker"]
# How C++, Python and TensorRT say it, in lower case.
_OUT_OF_MEMORY = ("bad_alloc", "memoryerror", "out of memory", "outofmemory")
# In TensorRT's messages: its own function, a number, and places in its sources.
_PLACES = re.compile(r"^\w+::\w+: Error Code \d+: |\[[\w.]+:\d+: \w+\] | In \w+ at /_src/[^\s)]+")


def check_capabilities(target: Target, capabilities: Sequence[str]) -> None:
    """Refuses compute capabilities that no engine of `target` can be built for.

    Raises:
        UsageError: one is not known, or named twice.
    """
    for capability in capabilities:
        if capability not in target.compute_capabilities:
            known = ", ".join(target.compute_capabilities)
            raise UsageError(f"compute capability {capability!r} is not one of TensorRT-RTX's; give some of {known}")
        if list(capabilities).count(capability) > 1:
            raise UsageError(f"compute capability {capability} is given twice")


def check_installed() -> None:
    """Refuses to begin where the library is not there.

    Raises:
        MissingDependencyError: with how to get it.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingDependencyError(
            "the Python package tensorrt_rtx is not installed; run pip install 'vtexport[tensorrt-rtx]'"
        )


def compile_rtx(
    bundle: Bundle,
    target: Target,
    capabilities: Sequence[str] = (),
    text_tokens: int = TEXT_TOKENS,
    stage: Callable[[str], None] = lambda text: None,
) -> Engines:
    """Builds an engine of every graph that the bundle's plans run and puts them in place whole.

    Args:
        bundle: an exported bundle in float16 or bfloat16; its manifest and its files are not changed.
        target: a recipe with the runtime "tensorrt-rtx".
        capabilities: compute capabilities such as "8.9"; a portable engine when empty.
        text_tokens: the longest text that a prefill takes beside the image.
        stage: called with a line before each engine.

    Raises:
        UsageError: the bundle's precision, a capability or a length does not fit.
        MissingDependencyError: tensorrt_rtx is not installed.
        VtexportError: TensorRT-RTX does not take a graph; with its own sentence.
    """
    check_capabilities(target, capabilities)
    manifest = bundle.manifest
    precision = DTYPES[manifest.precision].precision
    if precision not in target.precisions:
        raise UsageError(
            f"{bundle.folder} is in {precision} and target {target.name} takes {' or '.join(target.precisions)} "
            "(TensorRT-RTX has no float32 attention for lengths that vary); build the bundle with --precision "
            f"{target.precisions[0]}"
        )
    if precision == "bf16" and "7.5" in capabilities:
        raise UsageError(
            "compute capability 7.5 has no bfloat16; leave it out or build the bundle with --precision fp16"
        )
    wanted: dict[str, None] = {}  # in the order that a plan runs them, each once
    for plan in manifest.plans:
        graphs = plan.graphs[target.dialect]
        wanted |= dict.fromkeys((graphs.vision, graphs.prune, *graphs.decoder, *graphs.prune_llm))
    ranges = {name: profiles(manifest, manifest.graphs[name], text_tokens) for name in wanted}
    check_installed()
    engines, version = {}, ""
    with staged(bundle.folder / FOLDER / target.name, marker=RECORD_NAME) as folder:
        for number, name in enumerate(wanted, 1):
            stage(f"building engine {number} of {len(wanted)}: {name}")
            file = f"{name}.engine"
            job = Job(
                graph=str(bundle.path(manifest.graphs[name].file).absolute()),
                engine=str(folder / file),
                profiles=ranges[name],
                compute_capabilities=["SM" + capability.replace(".", "") for capability in capabilities],
                parent=os.getpid(),
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
            )
        record = Engines(
            schema_version=SCHEMA_VERSION,
            target=target.name,
            builder=version,
            compute_capabilities=list(capabilities),
            precision=manifest.precision,
            manifest_sha256=_describe(bundle.path(MANIFEST_NAME)).sha256,
            engines=engines,
        )
        (folder / RECORD_NAME).write_bytes(encode(record))
    return record


def build_engine(job: Job, name: str) -> Outcome:
    """Builds the engine of the graph `name` in a process of its own, which ends when this one does.

    Raises:
        VtexportError: TensorRT-RTX does not take the graph, or the process ended without an outcome.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(_WORKER, stdin=pipe, stdout=pipe, stderr=pipe) as process, written_by(process):
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
