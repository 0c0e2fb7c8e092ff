"""gpu-check where there is no GPU: what it measures with, what it writes, what it says when something is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_check import __main__ as command
from gpu_check import environment, parity, times, torch_style
from gpu_check.build import BuildError, build, spills
from gpu_check.ceilings import Floor, floor_of, measure_ceilings
from gpu_check.environment import NotHereError, Tools
from gpu_check.measure import WallClock, call_us, overhead_us, replay_us, summary
from gpu_check.report import (
    ceilings_text,
    model_text,
    parity_text,
    sanitizer_text,
    table,
    targets_text,
    times_text,
    write,
)
from gpu_check.sanitize import outcome_of, sanitize
from gpu_check.targets import targets
from gpu_check.workloads import ENCODER, Workload, encoder_workload_call, encoder_workloads, step_workloads
from native_ops.calls import Call
from native_ops.cases import random_case

ROOT = Path(__file__).parents[2]


class FakeClock:
    """A GPU that takes 5 microseconds for everything; it remembers in what order it was asked."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []  # type: ignore[var-annotated]

    def event(self) -> Any:
        clock = self

        class Event:
            def record(self) -> None:
                self.at = clock.now
                clock.log.append("event")

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        return Event()

    def hold(self, seconds: float) -> None:
        self.log.append("hold")

    def wait(self) -> None:
        self.log.append("wait")

    def work(self, microseconds: float) -> None:
        self.now += microseconds / 1e3
        self.log.append("work")


def test_samples_are_single_replays_in_turn() -> None:
    clock = FakeClock()
    found = replay_us([lambda: clock.work(5), lambda: clock.work(7)], 100, clock)
    assert found == pytest.approx([5, 7] * 50)
    assert clock.log[:2] == ["work", "work"], "one round that is not counted"
    assert clock.log[2:7] == ["wait", "hold", "event", "work", "event"], "enqueued behind work that holds the GPU"
    assert clock.log.count("wait") == 6, "two for each of three bursts"


def test_summary_and_overhead() -> None:
    found = summary(range(1, 201))
    assert (found["median"], found["p99"], found["min"]) == (100.5, 198, 1)
    assert len(found["samples"]) == 200
    assert summary([3.0])["p99"] == 3.0
    assert overhead_us(FakeClock()) == 0


def test_slow_calls_are_timed_once() -> None:
    calls = []
    samples, result = call_us(lambda: calls.append(1) or len(calls), WallClock(), most=5, seconds=60.0)
    assert (len(samples), result) == (5, 6), "the first is not counted"
    samples, result = call_us(lambda: "slow", WallClock(), most=5, seconds=0.0)
    assert (len(samples), result) == (1, "slow")


def test_ceilings_and_floors() -> None:
    found = measure_ceilings(WallClock(), device="cpu", size=64, copy_bytes=1 << 16)
    assert all(found[f"{name}_flops_per_s"] > 0 for name in ("fp32", "fp16"))
    assert found["copy_bytes_per_s"] > 0
    rates = {"copy_bytes_per_s": 1e12, "fp32_flops_per_s": 1e13, "fp16_flops_per_s": 1e14}
    assert Floor(10**6).microseconds(rates) == pytest.approx(1.0)
    assert Floor(10**6, 1e7, 1e9).microseconds(rates) == pytest.approx(11.0)


def test_floors_of_the_ops() -> None:
    """576 x 1024 float16: the features are 1.18 MB, half the Gram matrix 0.34 GFLOP."""
    floors = {}
    for name, method, options in ENCODER:
        call = encoder_workload_call(Workload(name, method, 576, 64, 1, (24, 24), options))
        assert call is not None
        floors[name] = floor_of(call)
    features = 576 * 1024 * 2
    assert floors["prunesid"].bytes == features + 2048 + 576 * 4 + 64 * (2048 + 8)
    assert floors["prunesid"].fp32_flops == pytest.approx(576**2 * 1024)
    assert floors["svdprune"].fp32_flops == pytest.approx(576**2 * 1024)  # centred, so no longer exact in float16
    assert floors["vitcop"].fp32_flops == floors["vitcop"].fp16_flops == 0
    assert floors["vitcop clusters"].fp32_flops == 64**2 * 1024
    assert floors["nuwa"].fp32_flops > 0
    assert floors["divprune"].fp16_flops == pytest.approx(576**2 * 1024)
    assert floors["cdpruner"].fp16_flops == pytest.approx(2 * 64 * 576 * 1024)
    for _, call in step_workloads():
        assert floor_of(call).bytes > 0


def test_the_workloads_are_the_issues() -> None:
    every = list(encoder_workloads(quick=False))
    assert {(each.tokens, each.keep, each.batch) for each in every} == {
        (tokens, keep, batch) for tokens in (576, 1152, 2880) for keep in (16, 64, 192) for batch in (1, 5)
    }
    assert len(list(encoder_workloads(quick=True))) == 2 * len(ENCODER)


@pytest.mark.parametrize("name", [name for name, *_ in ENCODER])
def test_pytorch_finds_the_references_tokens(name: str) -> None:
    """All but PruneSID with its randomised components: there a part."""
    _, method, options = next(each for each in ENCODER if each[0] == name)
    workload = Workload(name, method, 576, 64, 1, (24, 24), options)
    call = encoder_workload_call(workload)
    assert call is not None
    inputs = times.torch_inputs(workload, call, "cpu")
    torch.manual_seed(0)
    kept = times.torch_run(workload, call, inputs)()
    expected = times.reference_run(workload, inputs)().keep_indices
    assert times.overlap(kept, expected) >= (0.3 if method == "prunesid" else 0.98)
    assert torch_style.ABOUT[method]


def test_clusters_in_pytorch_are_the_references() -> None:
    from vtexport.pruning import select

    workload = Workload("vitcop", "vitcop", 576, 64, 1, (24, 24), {"clusters": True})
    call = encoder_workload_call(workload)
    assert call is not None
    inputs = times.torch_inputs(workload, call, "cpu")
    kept = inputs["scores"].topk(64).indices.sort().values[0]
    count = call.parameter("cluster_count")
    labels = torch_style._labels(inputs["keys"][0].flatten(1)[kept], kept, (24, 24), count)
    found = select("vitcop", inputs["features"], inputs["scores"], keys=inputs["keys"], keep=64, clusters=True)
    expected = found.details["labels"][0]  # numbers of clusters are open where centres tie
    assert ((labels[:, None] == labels) == (expected[:, None] == expected)).float().mean() > 0.95


class FakeRunner:
    """Stands for the kernels: picks the first tokens, and replays nothing."""

    def prepare(self, call: Call, poison: int = 0) -> Any:
        buffers = {name: torch.from_numpy(each.copy()) for name, each in call.inputs.items()}
        return FakePrepared(buffers, {name: each.data_ptr() for name, each in buffers.items()})

    def address(self, buffer: Any) -> int:
        return int(buffer.data_ptr())

    def captured(self, prepared: list[Any], repeats: int = 1) -> Any:
        self.copies = prepared
        return FakeGraph()

    def run(self, call: Call) -> dict[str, np.ndarray]:
        return {"keep_indices": np.tile(np.arange(call.sizes.keep), (call.sizes.batch, 1))}


@dataclasses.dataclass
class FakePrepared:
    buffers: dict[str, Any]
    addresses: dict[str, int]


class FakeGraph:
    def replay(self) -> None:
        pass


RATES = {"copy_bytes_per_s": 1e12, "fp32_flops_per_s": 1e13, "fp16_flops_per_s": 1e14, "overhead_us": 1.5}


def test_rows_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runner that does nothing, so every figure here is made up."""
    one = [Workload("vitcop", "vitcop", 576, 64, 1, (24, 24)), Workload("nuwa", "nuwa", 1152, 64, 2, (24, 48))]
    monkeypatch.setattr(times, "encoder_workloads", lambda quick: iter(one))
    runner = FakeRunner()
    request = {"clock": WallClock(), "cache_bytes": 5 << 20, "quick": True, "seconds": 60.0, "device": "cpu"}
    rows = list(times.run_times(runner, RATES, **request))
    assert [row["op"] for row in rows[:2]] == ["vitcop", "nuwa"]
    assert len(rows) == 7
    assert not any("error" in row for row in rows), rows
    assert rows[0]["copies"] == 9, "twice the cache in inputs"
    assert len(rows[0]["us"]["samples"]) == times.QUICK_SAMPLES
    assert "reference_us" in rows[0]["torch"]
    assert rows[2]["torch"] is None
    assert len({each.addresses["features"] for each in times.rotating(runner, _call(one[0]), 5 << 20)}) == 9
    text = times_text(rows)
    assert "vitcop" in text
    assert "float64 reference" in text
    json.dumps(rows)
    late = list(times.run_times(runner, RATES, **{**request, "seconds": -1.0}))
    assert late[0]["torch"] is None


def _call(workload: Workload) -> Call:
    call = encoder_workload_call(workload)
    assert call is not None
    return call


def test_a_fault_in_one_row_is_said_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeRunner):
        def prepare(self, call: Call, poison: int = 0) -> Any:
            raise RuntimeError("VtxNuwa: an illegal address")

    monkeypatch.setattr(times, "encoder_workloads", lambda quick: iter([]))
    request = {"clock": WallClock(), "cache_bytes": 1, "quick": True, "seconds": 0.0, "device": "cpu"}
    rows = list(times.run_times(Broken(), RATES, **request))
    assert all("illegal address" in row["error"] for row in rows)
    assert "illegal address" in times_text(rows)


def test_model_table_and_file(tmp_path: Path) -> None:
    """Of made-up numbers."""
    times_ = {"median": 1.0, "p99": 2.0, "min": 0.5, "samples": [1.0]}
    rows: list[dict[str, Any]] = [
        {"model": "m", "visual_tokens": 576, "vision_ms": times_, "prefill_ms": times_, "projector_ms": times_,
         "break_even": 570.0},
        {"model": "m", "visual_tokens": 64, "vision_ms": times_, "prefill_ms": times_, "projector_ms": times_,
         "selection_ms": times_, "selection_share": 0.01, "prefill_speedup": 7.0, "speedup_behind_vision": 6.0,
         "speedup_in_all": 3.0, "torch_selection_ms": times_},
    ]  # fmt: skip
    text = model_text(rows)
    assert "pruning pays below 570 of 576" in text
    assert "1.00%" in text
    assert "copy 1000 GB/s" in ceilings_text(RATES)
    report = {"machine": {"gpu_name": "NVIDIA H100 80GB HBM3"}, "quick": True, "model": {"rows": rows}}
    path = write(report, tmp_path)
    assert path.name == "gpu_check_nvidia_h100_80gb_hbm3_quick.json"
    assert json.loads(path.read_text()) == report
    assert '"samples": [ 1.0 ]' in path.read_text()
    assert table(["a", "bb"], [["ccc", "1"]]) == "a    bb\nccc   1"


def test_targets_of_made_up_results() -> None:
    def row(op: str, batch: int, median: float, quicker: float | None) -> dict[str, Any]:
        sizes = {"op": op, "tokens": 576, "keep": 64, "batch": batch, "dtype": "float16"}
        beside = {"torch": None if quicker is None else {"overlap": 1.0}, "times_quicker_than_torch": quicker}
        return {**sizes, "us": {"median": median}, **beside}

    rows = [row("prunesid", 1, 80, 400), row("nuwa", 5, 230, 4), row("divprune", 1, 99, None), {"error": "x"}]
    rows[3] |= {"tokens": 576, "keep": 64, "dtype": "float16"}
    model = [{"visual_tokens": 576}, {"visual_tokens": 64, "selection_share": 0.02},
             {"visual_tokens": 160, "prefill_speedup": 8.0}]  # fmt: skip
    found = targets({"times": {"rows": rows}, "model": {"rows": model}})
    assert [each["met"] for each in found] == [True, True, False, True, False, True]
    assert "NO" in targets_text(found)
    assert targets({}) == []
    assert "no target" in targets_text([])


def test_parity_text_says_what_is_wrong() -> None:
    section = vars(parity.Section("golden vectors", 3, 4, 2, 1.0, [f"problem {n}" for n in range(12)]))
    found = {
        "sections": [section],
        "sanitizer": [{"tool": "memcheck", "outcome": "absent", "seconds": 0, "output": ""}],
    }
    text = parity_text(found)
    assert "3 cases, 2 of 4 images decided in full: WRONG in 12 ways" in text
    assert "and 2 more" in text
    entry = {"tool": "memcheck", "outcome": "absent", "seconds": 0, "output": ""}
    assert "memcheck: absent" in sanitizer_text([entry])
    assert "Invalid __global__ write" in sanitizer_text(
        [{**entry, "outcome": "errors", "output": "Invalid __global__ write"}]
    )


def test_parity_sees_a_runner_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the way through, with few cases and a runner that answers every call with zeros."""

    class Zeros:
        def run_twice(self, call: Call) -> tuple[dict[str, np.ndarray], list[str]]:
            return self.run(call), []

        def run(self, call: Call, poison: int = 0) -> dict[str, np.ndarray]:
            return {name: np.zeros(shape, kind) for name, (shape, kind) in call.outputs.items()}

    monkeypatch.setattr(parity, "QUICK_CASES", 12)
    monkeypatch.setattr(parity, "golden_names", lambda: ["divprune/divprune_cdpruner_seed1/N32"])
    found = parity.run_parity(Zeros(), True, lambda call: ["wrong too"])  # type: ignore[arg-type]
    assert not found["passed"]
    counts = {section["name"]: (section["cases"], len(section["problems"])) for section in found["sections"]}
    assert counts["golden vectors"] == (1, 1)
    assert counts["random inputs"][0] == 12
    assert counts["random inputs"][1] >= 12
    assert counts["batch of 5 as five images"] == (7, 0)
    assert counts["CUDA graph as direct call"] == (11, 11)
    assert counts["hostile inputs"] == (88, 88)
    json.dumps(found)


def test_a_fault_ends_a_section_and_not_the_others() -> None:
    def checks() -> Any:
        yield [], None
        raise RuntimeError("the GPU has fallen off the bus")

    found = parity._section("random inputs", checks())
    assert found.cases == 1
    assert "stopped after 1 cases" in found.problems[0]
    assert parity._section("nothing", iter([])).problems == ["nothing: nothing was checked"]


def test_small_cases_are_small_and_of_every_op() -> None:
    found = list(parity.small_cases())
    assert len({case.call.op_type for case in found}) == 10
    assert len(found) == 20
    assert max(np.prod(shape) for case in found for shape, _ in case.call.outputs.values()) < 40_000


def test_without_a_gpu_it_says_so_and_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert command.main([]) == 3
    said = capsys.readouterr().err
    assert "gpu-check needs" in said
    assert said.count("\n") == 1


def test_without_nvcc_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "_find", lambda *each: None)
    with pytest.raises(NotHereError, match="needs nvcc"):
        environment.find_tools()
    monkeypatch.setattr(command, "check_gpu", lambda: None)
    assert command.main([]) == 3


def test_tools_are_found_in_a_toolkits_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nvcc", "compute-sanitizer"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDACXX", raising=False)
    found = environment.find_tools()
    assert (found.nvcc, found.cmake) == (tmp_path / "bin" / "nvcc", None)
    assert found.sanitizer == tmp_path / "bin" / "compute-sanitizer"


def test_a_part_that_dies_is_not_done(tmp_path: Path, capfd: pytest.CaptureFixture[str], paths: None) -> None:
    """Here for want of a GPU or of a library: the part's own process reports it, and the caller goes on."""
    found = command.part_in_process("parity", tmp_path / "no.so", tmp_path, True, 120.0)
    assert not found["done"]
    assert found["error"]


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path, paths: None) -> None:
    found = command.part_in_process("model", tmp_path / "no.so", tmp_path, True, 0.0)
    assert found == {"done": False, "error": "model was stopped after 1 seconds"}
    assert sum(command.PART_SECONDS[part] for part in command.PARTS) < command.SECONDS < 480


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(str(each) for each in (ROOT, ROOT / "tools", ROOT / "benchmarks")))


def test_sanitizer_outcomes() -> None:
    assert outcome_of(0, "========= ERROR SUMMARY: 0 errors") == "clean"
    assert outcome_of(86, "========= ERROR SUMMARY: 2 errors") == "errors"
    assert outcome_of(0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)") == "clean"
    assert outcome_of(1, "Error: Unable to find injection library") == "failed"
    assert [each["outcome"] for each in sanitize(None, Path("library.so"))] == ["absent", "absent"]


def test_spills_and_a_compiler_that_fails(tmp_path: Path) -> None:
    log = """ptxas info    : Compiling entry function '_Z4goodv' for 'sm_90'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z3badv' for 'sm_90'
ptxas info    : Function properties for _Z3badv
    8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
"""
    assert spills(log) == ("_Z3badv: 8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads",)
    with pytest.raises(BuildError, match="failed with exit code 1"):
        build(Tools(Path("/bin/false"), None, None), "9.0", tmp_path)


def test_the_command_runs_as_a_module(paths: None) -> None:
    done = subprocess.run([sys.executable, "-m", "gpu_check", "--only", "speed"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "some of parity, times, model" in done.stderr


def test_cases_go_through_a_process() -> None:
    """The references are computed in other processes, so cases have to be picklable."""
    import pickle

    case = random_case(3)
    again = pickle.loads(pickle.dumps(case))
    assert again.call.sizes.grid_rows == case.call.sizes.grid_rows
    assert again.call.parameter("groups") == case.call.parameter("groups")
