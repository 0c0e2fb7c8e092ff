"""The process that builds one TensorRT-RTX engine: what it says where it fails, what it costs, and when it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vtexport.backends.registry import compile_bundle
from vtexport.backends.targets import find_target
from vtexport.backends.trt import compile as trt_compile
from vtexport.backends.trt.worker import Job, Outcome
from vtexport.build import build
from vtexport.bundle.reader import open_bundle
from vtexport.errors import VtexportError


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("half") / "tiny"
    return build(str(tiny_checkpoint), target, keep=16, precision="fp16").folder


def one_node(path: Path, op: str, shape: tuple[int, ...] = (2, 3), k: int | None = None, domain: str = "") -> Path:
    """A graph of one node, x -> y, with a second input `k` and a second output where an op has them."""
    describe = helper.make_tensor_value_info
    outputs = [describe(name, TensorProto.FLOAT, None) for name in ("y", "indices")[: 1 if k is None else 2]]
    constants = [] if k is None else [helper.make_tensor("k", TensorProto.INT64, [1], [k])]
    inputs = ["x", *(constant.name for constant in constants)]
    node = helper.make_node(op, inputs, [out.name for out in outputs], name="the_node", domain=domain)
    graph = helper.make_graph([node], "g", [describe("x", TensorProto.FLOAT, shape)], outputs, constants)
    if op in {"NonZero", "TopK"}:
        outputs[-1].type.tensor_type.elem_type = TensorProto.INT64
        graph.output[-1].CopyFrom(outputs[-1])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def job(path: Path) -> Job:
    engine = str(path) + ".engine"
    return Job(
        module="tensorrt_rtx", graph=str(path), engine=engine, profiles=[], compute_capabilities=[], parent=os.getpid()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"op": "NonZero"}, r".+\(node the_node, NonZero\)"),
        ({"op": "VtxNothing", "domain": "vtexport"}, r".*Plugin not found.*\(node the_node, VtxNothing\)"),
        ({"op": "TopK", "shape": (1, 4000), "k": 3900}, r".*the_node: K exceeds the maximum value allowed \(3840\)"),
    ],
    ids=["not parsed", "unknown", "parsed and not built"],
)
def test_a_failure_has_the_librarys_sentence_and_the_nodes_name(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = one_node(tmp_path / "g.onnx", **given)
    with pytest.raises(VtexportError, match=r"tensorrt_rtx [\d.]+ does not take g: " + message):
        trt_compile.build_engine(job(path), "g")
    assert not (tmp_path / "g.onnx.engine").exists()


def test_the_pruning_op_needs_its_function(half_bundle: Path) -> None:
    """The same node is an engine with the function, which is inlined, and an unknown plugin without."""
    folder = half_bundle / "onnx"
    with pytest.raises(VtexportError, match=r"Plugin not found.*VtxPruneSID\)"):
        trt_compile.build_engine(job(folder / "prunesid-16.prune.native.onnx"), "g")
    assert trt_compile.build_engine(job(folder / "prunesid-16.prune.onnx"), "g").problems == []


def test_the_worker_speaks_json(tmp_path: Path) -> None:
    wanted = job(one_node(tmp_path / "g.onnx", "NonZero"))
    shown = subprocess.run(trt_compile._WORKER, input=msgspec.json.encode(wanted), capture_output=True, check=True)
    assert msgspec.json.decode(shown.stdout, type=Outcome).problems


def test_its_memory_is_its_own(tmp_path: Path) -> None:
    """Not what the process that started it has, which the kernel hands on as the child's ru_maxrss."""
    held = np.ones(1_000_000_000, np.uint8)
    peak = trt_compile.build_engine(job(one_node(tmp_path / "g.onnx", "Relu")), "g").peak_memory_bytes
    assert 50e6 < peak < 0.8 * held.nbytes


def test_a_process_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(script: str) -> str:
        monkeypatch.setattr(trt_compile, "_WORKER", ["/bin/sh", "-c", script])
        with pytest.raises(VtexportError) as said:
            trt_compile.build_engine(job(tmp_path / "g.onnx"), "g")
        return str(said.value)

    assert "engine of g ended with signal 6: terminate called" in dies("cat >&-; echo terminate called >&2; kill -6 $$")
    assert "ended with exit code 3: it said nothing" in dies("exit 3")
    lacking = "memory did not suffice to build the engine of g (signal 9, which is how Linux ends a process"
    assert lacking in dies("kill -9 $$")
    assert "memory did not suffice" in dies("echo 'Traceback'; echo MemoryError >&2; exit 1")


def test_a_real_lack_of_memory_is_said(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # small stacks, or its threads would be what does not fit
    limited = ["/bin/sh", "-c", 'ulimit -s 256; ulimit -v 320000; exec "$0" "$@"', *trt_compile._WORKER]
    monkeypatch.setattr(trt_compile, "_WORKER", limited)
    with pytest.raises(VtexportError, match=r"memory did not suffice to build the engine of g .*bad_alloc"):
        trt_compile.build_engine(job(half_bundle / "onnx" / "prunesid-16.prune.onnx"), "g")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Any, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
    return found


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state.rpartition(")")[2].split()[0] in {"Z", "X"}  # a zombie only waits for init to look


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("busy", [False, True], ids=["at its start", "while it builds"])
def test_no_worker_outlives_the_command(number: signal.Signals, busy: bool, half_bundle: Path) -> None:
    """Only the parent gets the signal, as from a service manager or the out-of-memory killer."""
    command = [sys.executable, "-m", "vtexport", "compile", str(half_bundle), "--target", "rtx"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    (worker,) = wait_for(lambda: children(process.pid))
    if busy:
        wait_for(lambda: "libtensorrt_rtx" in Path(f"/proc/{worker}/maps").read_text())
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    wait_for(lambda: has_ended(worker), seconds=10)
    engines = half_bundle / "engines"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        compile_bundle(open_bundle(half_bundle), find_target("rtx"))
        assert [path.name for path in engines.iterdir()] == ["rtx"], "the next run removes what was left"
    else:
        assert process.returncode == 130
        assert re.search(rb"interrupted; what was half-written is removed", told)
        assert not list(engines.glob(".*")), "nothing half-written is left"
