"""Estimates for a device: the roofline, sums of memory, and what is said where something does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from llava_sizes import write_llava_graphs

from vtexport.backends import estimate as estimating
from vtexport.backends.arithmetic import Work
from vtexport.backends.estimate import BUILD_FACTOR, Estimator, roofline
from vtexport.backends.recipe import Device, Target
from vtexport.backends.record import Engine, Engines
from vtexport.backends.targets import find_target
from vtexport.build import build
from vtexport.bundle.memory import kv_bytes
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import UsageError


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "tiny"
    return build(str(tiny_checkpoint), folder, keep=[8, 16], precision="fp16").folder


@pytest.fixture(scope="module")
def mini_half(mini_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "mini"
    return build("mini", folder, keep=64, precision="fp16", cache_dir=mini_cache).folder


def device(**given: Any) -> Device:
    return Device(**{"name": "d", "title": "a device", "compute_capability": "8.7"} | given)


def target(*devices: Device, runtime: str = "tensorrt") -> Target:
    return Target(
        title="a board",
        runtime=runtime,
        buildable=False,
        opset=23,
        precisions=["fp16"],
        devices=list(devices),
        name="t",
    )


@pytest.mark.parametrize(
    ("peak", "bandwidth", "expected"),
    [
        (2.0, 100.0, (50.0, "arithmetic")),
        (20.0, 100.0, (10.0, "bytes")),
        (None, 100.0, (10.0, "bytes")),
        (2.0, None, (50.0, "arithmetic")),
        (None, None, (None, "")),
    ],
)
def test_the_longer_of_two_times(peak: float | None, bandwidth: float | None, expected: Any) -> None:
    time = roofline("prefill", Work(flops=100e9, bytes=1e9), peak, bandwidth)
    assert (time.milliseconds, time.bound) == (pytest.approx(expected[0]) if expected[0] else None, expected[1])


def test_the_sum_of_memory(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    plan = bundle.manifest.plans[0]
    small = device(memory_mib=1000, shared_memory=True, system_mib=500, cma_mib=256)
    found = Estimator(bundle, target(small), text_tokens=5, new_tokens=3).estimate(plan, small)
    memory = found.memory
    amounts = {each.what: (each.bytes, each.how) for each in memory.amounts}
    decoder = bundle.manifest.decoder
    row = 2 * decoder.num_key_value_heads * decoder.head_dim * 2
    assert amounts["system"] == (500 * 2**20, "stated")
    assert amounts["KV cache"] == (decoder.num_hidden_layers * row * (8 + 5 + 3), "exact")
    assert amounts["KV cache"][0] == kv_bytes(bundle.manifest, plan, 8)
    names = "vision.cls_attention.modern", "prunesid-8.prune", "decoder_0.modern"
    models = [onnx.load(half_bundle / "onnx" / f"{name}.onnx", load_external_data=False) for name in names]
    outside = [tensor for model in models for tensor in model.graph.initializer if tensor.external_data]
    stored = sum(int(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "length")
    assert stored > 400_000
    assert amounts["weights of 3 graphs"] == (stored, "exact")
    assert amounts["workspace, CUDA and the runtime"] == (None, "not known")
    assert memory.total == sum(each or 0 for each, _ in amounts.values())
    assert memory.left == pytest.approx(1000 * 2**20 - memory.total)
    assert memory.fits
    assert [each.what for each in memory.within] == ["pool of the contiguous allocator"], "which is in no sum"


def test_longer_answers_take_more_of_the_cache_alone(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    plan, small = bundle.manifest.plans[0], device(memory_gb=1)
    short = Estimator(bundle, target(small), new_tokens=3).estimate(plan, small)
    long = Estimator(bundle, target(small), new_tokens=13).estimate(plan, small)
    grown = long.memory.total - short.memory.total
    assert grown == kv_bytes(bundle.manifest, plan, 10) - kv_bytes(bundle.manifest, plan)
    assert [time.work for time in short.times[:3]] == [time.work for time in long.times[:3]]
    assert long.times[3].work.flops > short.times[3].work.flops


def test_too_small_a_device_says_what_to_do(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(half_bundle)
    plan = bundle.manifest.plans[0]
    small = device(memory_mib=1, shared_memory=True)
    big = device(name="big", title="the big one", memory_gb=64)
    other = device(name="other", title="another architecture", memory_gb=64, compute_capability="11.0")
    memory = Estimator(bundle, target(small, other, big), new_tokens=8).estimate(plan, small).memory
    monkeypatch.setattr(estimating, "BUILD_FACTOR", 10 * BUILD_FACTOR)
    much = Estimator(bundle, target(small, other, big), new_tokens=8).estimate(plan, small).memory
    assert much.build is not None
    assert memory.build is not None
    assert much.build.bytes == pytest.approx(10 * (memory.build.bytes or 0))
    assert much.build_fits is False
    assert much.advice[0] == "build on the big one, whose GPU has the same compute capability 8.7"
    assert "add swap for them; what the GPU uses is pinned" in much.advice[1]
    assert "keep one budget in the bundle" in much.advice[2]
    alone = Estimator(bundle, target(small, other), new_tokens=8).estimate(plan, small).memory
    assert "no device of the target holds the build" in alone.advice[0]
    tiny = device(memory_mib=0.1)
    lacking = Estimator(bundle, target(tiny, other, big), new_tokens=8).estimate(plan, tiny).memory
    assert lacking.fits is False
    assert lacking.advice == ["run it on another architecture, or take a smaller model, or weights of fewer bits"]
    alone = Estimator(bundle, target(tiny), new_tokens=8).estimate(plan, tiny).memory
    assert alone.advice == ["take a smaller model, or weights of fewer bits"]
    fine = Estimator(bundle, target(big)).estimate(plan, big).memory
    assert (fine.build_fits, fine.advice) == (True, [])


def test_engines_that_are_built_elsewhere_have_no_build_there(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    plan, card = bundle.manifest.plans[0], device(memory_gb=24)
    ahead = Estimator(bundle, target(card, runtime="tensorrt-rtx")).estimate(plan, card).memory
    assert ahead.build is not None
    assert (ahead.builds_there, ahead.build_fits, ahead.advice) == (False, None, [])
    none = Estimator(bundle, target(card, runtime="onnxruntime")).estimate(plan, card).memory
    assert (none.build, none.build_fits, none.advice) == (None, None, [])


def test_engines_count_with_their_size(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    plan, card = bundle.manifest.plans[0], device(memory_gb=24)
    names = [name for name in bundle.manifest.graphs if not name.endswith((".classic", ".native"))]
    engines = {name: Engine(file="e", bytes=1000, sha256="0" * 64, profiles=[], peak_memory_bytes=1) for name in names}
    record = Engines(
        schema_version=2, target="t", builder="b", compute_capabilities=[], precision="float16",
        manifest_sha256="0" * 64, engines=engines,
    )  # fmt: skip
    memory = Estimator(bundle, target(card), record).estimate(plan, card).memory
    assert [(each.bytes, each.how) for each in memory.amounts if each.what == "engines"] == [(3000, "measured")]
    assert memory.build == estimating.Amount("the largest engine", 1, "measured")


def test_unknown_figures_are_said_and_not_guessed(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    bare = device(shared_memory=True)
    found = Estimator(bundle, target(bare)).estimate(bundle.manifest.plans[0], bare)
    assert found.peak_tflops is None
    assert all(time.milliseconds is None for time in found.times)
    assert (found.memory.fits, found.memory.left, found.memory.build_fits) == (None, None, None)
    assert found.memory.amounts[0] == estimating.Amount("system", None, "not known")
    nowhere = Estimator(bundle, find_target("cpu")).estimate(bundle.manifest.plans[0], None)
    assert nowhere.memory.whole is None
    assert nowhere.times[0].work.flops > 0


def test_llava_on_eight_gigabytes(mini_half: Path, tmp_path: Path, capsys: Any) -> None:
    """LLaVA-1.5 7B in float16 with its real graphs: 13.8 GB of weights, 13.3 GB to read for each token."""
    write_llava_graphs(mini_half, tmp_path / "llava", [("prunesid", 64)])
    assert main(["inspect", str(tmp_path / "llava"), "--target", "orin-jetpack-7.2"]) == 0
    nano, nx, agx = re.split(r"\n\n", capsys.readouterr().out)[1:]
    assert "decode, per token  13.32     13.3 GB   130.548   bytes" in nano
    assert "does not fit: 6.6 GB are lacking" in nano
    assert "run it on Jetson Orin NX 16 GB, or take a smaller model" in nano
    assert "fits, 1.2 GB left" in nx
    assert "takes about 42.3 GB there: it does not fit\n    build on Jetson AGX Orin 64 GB" in nx
    assert "takes about 42.3 GB there: it fits" in agx


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text_tokens": 0}, "--text-tokens is 0; give a whole number from 1"),
        ({"new_tokens": -1}, "--new-tokens is -1"),
        ({"new_tokens": 10**6}, "1000000 new ones are more than the model's"),
    ],
)
def test_lengths_that_cannot_be(half_bundle: Path, given: dict[str, int], said: str) -> None:
    bundle = open_bundle(half_bundle)
    with pytest.raises(UsageError, match=said):
        Estimator(bundle, target(device()), **given).estimate(bundle.manifest.plans[0], device())  # type: ignore[arg-type]


def test_a_precision_that_the_target_does_not_take(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"is in fp32 and target t takes fp16; build the bundle with --precision fp16"):
        Estimator(open_bundle(tiny_bundle), target(device()))


def test_the_command(half_bundle: Path, capsys: Any) -> None:
    given = ["inspect", str(half_bundle), "--target"]
    lengths = ["--text-tokens", "9", "--new-tokens", "7"]
    assert main([*given, "orin-jetpack-7.2/orin-nano-8gb", "--plan", "prunesid-8", *lengths]) == 0
    shown = capsys.readouterr().out
    assert "with 9 tokens of text and 7 new ones; estimates, not measured" in shown
    assert "prunesid-8 on Jetson Orin Nano 8 GB, MAXN_SUPER\n" in shown
    assert "lower bounds of time, at 16.75 TFLOPS of fp16 and 102 GB/s" in shown
    assert "fits, 7.4 GB left for the workspace, CUDA, the runtime and everything else" in shown
    assert main([*given, "orin-jetpack-7.2", *lengths, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(each["device"], each["plan"]) for each in answer["estimates"]] == [
        (name, plan)
        for name in ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb")
        for plan in ("prunesid-8", "prunesid-16")
    ]
    first = answer["estimates"][0]
    assert set(first["stages"]) == {"vision", "prune", "prefill", "decode"}
    assert first["memory"]["fits"] is True
    assert first["memory"]["total_bytes"] == sum(each["bytes"] or 0 for each in first["memory"]["amounts"])
    assert main([*given, "cpu", *lengths]) == 0
    assert "a device that no recipe describes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--plan", "none"], "--plan are of the estimates for a target; give --target as well"),
        (["--target", "rtx", "--verify"], "give one of them"),
        (["--target", "rtx/rtx-1"], "target rtx has no device 'rtx-1'; known: rtx-4090, rtx-5090"),
        (["--target", "rtx", "--plan", "none"], "has no plan 'none'; it has prunesid-8, prunesid-16"),
        (["--target", "rtx", "--new-tokens", "0"], "--new-tokens is 0"),
    ],
)
def test_wrong_use_of_the_command(half_bundle: Path, given: list[str], said: str, capsys: Any) -> None:
    assert main(["inspect", str(half_bundle), *given]) == 2
    assert said in capsys.readouterr().err


def test_the_amounts_can_be_written(half_bundle: Path) -> None:
    bundle = open_bundle(half_bundle)
    small = device(memory_gb=8)
    found = Estimator(bundle, target(small)).estimate(bundle.manifest.plans[0], small)
    assert msgspec.json.decode(msgspec.json.encode(found.memory))["whole"] == 8e9
