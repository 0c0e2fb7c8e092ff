"""TensorRT-RTX engines, really built; that takes no GPU. Without tensorrt_rtx these tests fail and are not skipped."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from warm_builds import WarmBuilds

from vtexport.backends.record import read_engines
from vtexport.backends.registry import compile_bundle
from vtexport.backends.targets import find_target
from vtexport.backends.trt import compile as trt_compile
from vtexport.backends.trt.profiles import profiles
from vtexport.backends.trt.worker import Job, Outcome
from vtexport.build import build
from vtexport.bundle import manifest as schema
from vtexport.bundle.reader import open_bundle
from vtexport.cli.main import main
from vtexport.errors import BundleError, MissingDependencyError, UsageError, VtexportError
from vtexport.export.needs import needs_of
from vtexport.graphs.dialects import DIALECTS
from vtexport.graphs.files import interface
from vtexport.graphs.weight import Weight
from vtexport.models.decoders.llama import LlamaDecoder
from vtexport.models.parts import EMBEDDING, HEAD
from vtexport.runtime.pipeline import Pipeline

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def compiled(mini_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini in fp16 unpruned and at three budgets with its engines, by the command a user gives."""
    folder = tmp_path_factory.mktemp("rtx") / "mini"
    build("mini", folder, method="none", precision="fp16", cache_dir=mini_cache)
    given = ["--model", "mini", "--keep", "64,128,192", "--target", "rtx", "--cache-dir", str(mini_cache)]
    assert main(["build", *given, "-o", str(folder), "--compute-capability", "8.6,8.9,12.0"]) == 0
    return folder


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("half") / "tiny"
    return build(str(tiny_checkpoint), target, keep=16, precision="fp16").folder


def test_every_graph_of_the_plans_is_an_engine(compiled: Path, photo: Path) -> None:
    bundle = open_bundle(compiled)
    (record,) = read_engines(bundle)
    modern = {name for plan in bundle.manifest.plans for name in _graphs(plan.graphs)}
    assert set(record.engines) == modern
    assert record.builder.startswith("tensorrt_rtx ")
    assert (record.target, record.compute_capabilities) == ("rtx", ["8.6", "8.9", "12.0"])
    folder = compiled / "engines" / "rtx"
    for engine in record.engines.values():
        data = (folder / engine.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (engine.bytes, engine.sha256)
        assert len(data) > 100_000
        assert 50e6 < engine.peak_memory_bytes < 2e9
    assert {path.name for path in folder.iterdir()} == {"engines.json", *(e.file for e in record.engines.values())}
    assert [path.name for path in folder.parent.iterdir()] == ["rtx"], "nothing is left beside it"
    ranges = {profile.name: profile.shapes["position_ids"] for profile in record.engines["decoder_0.modern"].profiles}
    assert ranges == {
        "prefill-64": [[1, 65], [1, 128], [1, 576]],
        "prefill-128": [[1, 129], [1, 192], [1, 640]],
        "prefill-192": [[1, 193], [1, 256], [1, 704]],
        "prefill-576": [[1, 577], [1, 640], [1, 1088]],
        "decode": [[1, 1], [1, 1], [1, 2]],
    }
    assert bundle.verify() == []
    assert Pipeline.open(compiled, "prunesid-64").generate(photo, "What is this?", max_new_tokens=2).token_ids


def _graphs(graphs: schema.PlanGraphs) -> list[str]:
    return [next(name for name in stage if not name.endswith(".native")) for stage in graphs.stages]


def test_inspect_lists_engines(compiled: Path, capsys: Any) -> None:
    assert main(["inspect", str(compiled)]) == 0
    shown = capsys.readouterr().out
    assert "engines/rtx: 7 engines by tensorrt_rtx" in shown
    assert re.search(r"\(8\.6, 8\.9, 12\.0\), each built in \d+\.\d MB of memory or less", shown)
    assert main(["inspect", str(compiled), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["engines"][0]["engines"]) >= {"decoder_0.modern"}


def test_compiling_again_replaces_and_changes_nothing_else(half_bundle: Path, capsys: Any) -> None:
    manifest = (half_bundle / "manifest.json").read_bytes()
    for capability in ("8.9", "12.0"):
        given = ["compile", str(half_bundle), "--target", "rtx", "--compute-capability", capability, "--text-tokens"]
        assert main([*given, "100", "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)) == {
            "bundle", "engines", "peak_memory_bytes", "plugins", "plugin_library"
        }  # fmt: skip
    (record,) = read_engines(open_bundle(half_bundle))
    assert record.compute_capabilities == ["12.0"]
    assert record.engines["decoder_0.modern"].profiles[0].shapes["position_ids"] == [[1, 17], [1, 80], [1, 116]]
    assert (half_bundle / "manifest.json").read_bytes() == manifest


def test_building_into_the_bundle_says_that_engines_go(half_bundle: Path, tiny_checkpoint: Path, capsys: Any) -> None:
    if not (half_bundle / "engines").exists():
        compile_bundle(open_bundle(half_bundle), find_target("rtx"))
    given = ["build", "--model", str(tiny_checkpoint), "--keep", "20", "--precision", "fp16", "-o", str(half_bundle)]
    assert main(given) == 0
    assert "run `vtexport compile` afterwards" in capsys.readouterr().err
    assert read_engines(open_bundle(half_bundle)) == []


def decoder_weights(spec: LlamaDecoder, folder: Path, dtype: str) -> dict[str, Weight]:
    """Random weights in 16 bits of a decoder without a head of any size, in one file."""
    shapes = {HEAD: spec.head_shape} | spec.shapes()
    del shapes[EMBEDDING]  # which no graph reads
    random, weights, offset = np.random.default_rng(0), {}, 0
    (folder / "weights").mkdir()
    with (folder / "weights" / "w.bin").open("wb") as file:
        for name, shape in shapes.items():
            data = (random.random(shape, np.float32) - 0.5).astype(np.float16).tobytes()
            weights[name] = Weight("w.bin", offset, len(data), shape, dtype)
            offset += file.write(data)
    return weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_engine_holds_its_weights_once(dtype: str, half_bundle: Path, tmp_path: Path) -> None:
    """Three profiles under 1.1 times the weights, with weights large enough that they outweigh the kernels."""
    spec = LlamaDecoder(
        num_hidden_layers=2, hidden_size=2048, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        vocab_size=256, rms_norm_eps=1e-5, max_position_embeddings=2048, attention_scaling=1.0,
        inv_freq=1 / 10000 ** (np.arange(64) / 64),
        intermediate_size=4 * 2048, qkv_bias=False, output_bias=False, mlp_bias=False, windows=(None, None),
    )  # fmt: skip
    weights = decoder_weights(spec, tmp_path, dtype)
    model = spec.segment(weights, tmp_path, dtype, 0, spec.num_hidden_layers, DIALECTS["modern"])
    ir.save(model, tmp_path / "decoder.onnx")
    inputs = [schema.Tensor(name=n, shape=s, dtype=d) for n, s, d in interface(model.graph.inputs)]  # type: ignore[arg-type]
    graph = schema.Graph(file="decoder.onnx", needs=needs_of(model), inputs=inputs, outputs=[])
    manifest = open_bundle(half_bundle).manifest
    plans = [msgspec.structs.replace(manifest.plans[0], visual_tokens=visual) for visual in (64, 192)]
    sizes = msgspec.structs.replace(manifest.decoder, max_position_embeddings=spec.max_position_embeddings)
    graphs = manifest.graphs | {"decoder_0.modern": graph}
    ranges = profiles(msgspec.structs.replace(manifest, plans=plans, decoder=sizes, graphs=graphs), graph)
    assert [profile.name for profile in ranges] == ["prefill-64", "prefill-192", "decode"]
    job = Job(
        module="tensorrt_rtx",
        graph=str(tmp_path / "decoder.onnx"),
        engine=str(tmp_path / "decoder.engine"),
        profiles=ranges,
        compute_capabilities=[],
        parent=os.getpid(),
    )
    trt_compile.build_engine(job, "decoder")
    total = sum(weight.nbytes for weight in weights.values())
    assert total > 200e6
    assert total < (tmp_path / "decoder.engine").stat().st_size < 1.1 * total


def test_a_failed_build_leaves_the_earlier_engines(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(half_bundle)
    compile_bundle(bundle, find_target("rtx"))
    before = read_engines(bundle)
    run = trt_compile.build_engine

    def fail(wanted: Job, name: str) -> Outcome:
        if name.startswith("decoder"):
            raise VtexportError("no")
        return run(wanted, name)

    monkeypatch.setattr(trt_compile, "build_engine", fail)
    with pytest.raises(VtexportError, match="no"):
        compile_bundle(bundle, find_target("rtx"), ["8.9"])
    assert read_engines(bundle) == before
    assert [path.name for path in (half_bundle / "engines").iterdir()] == ["rtx"]


def test_a_disk_that_fills_up(half_bundle: Path, warm_builds: WarmBuilds, tmp_path: Path) -> None:
    """While engines are written, which their own processes do."""
    if warm_builds.why_no_mounts:
        pytest.skip(warm_builds.why_no_mounts)
    warm_builds.mount(tmp_path, "size=64m")
    disk = warm_builds.seen(tmp_path)
    shutil.copytree(half_bundle, disk / "b", ignore=shutil.ignore_patterns("engines"))
    before = {path.relative_to(disk) for path in disk.rglob("*")}
    ended = warm_builds.run("compile", tmp_path / "b", "--target", "rtx", fill="building engine 2", disk=tmp_path)
    assert ended.code == 1
    assert re.search(r"^vtexport: .*(No space left on device|disk .* is full)", ended.sentence)
    (disk / "other data").unlink()
    assert {path.relative_to(disk) for path in disk.rglob("*")} - before <= {Path("b/engines")}
    assert warm_builds.run("inspect", tmp_path / "b", "--verify").code == 0


def test_tf32_is_cleared(half_bundle: Path) -> None:
    """The flag is on by default; the worker's configuration is looked at where it builds."""
    graph = open_bundle(half_bundle).path("onnx/prunesid-16.prune.onnx")
    code = f"""
import tensorrt_rtx as trt
from vtexport.backends.trt.worker import Job, run_job
real, seen = trt.Builder, []
class Builder(real):
    def build_serialized_network(self, network, config):
        seen.append(config.get_flag(trt.BuilderFlag.TF32))
        return None
    def create_builder_config(self):
        config = super().create_builder_config()
        seen.append(config.get_flag(trt.BuilderFlag.TF32))
        return config
trt.Builder = Builder
job = Job(
    module="tensorrt_rtx", graph={str(graph)!r}, engine="/nowhere", profiles=[], compute_capabilities=[], parent=0
)
run_job(job)
print(seen)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[True, False]"


def test_what_cannot_work_is_refused_before_the_work(
    tiny_bundle: Path, tiny_checkpoint: Path, half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find_target("rtx")
    with pytest.raises(UsageError, match=r"is in fp32 and target rtx takes fp16 or bf16 .* --precision fp16"):
        compile_bundle(open_bundle(tiny_bundle), target)
    with pytest.raises(UsageError, match=r"compute capability '9.0' is not one of TensorRT-RTX's; give some of 7.5"):
        compile_bundle(open_bundle(half_bundle), target, ["9.0"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vtexport\[tensorrt-rtx\]'"):
        compile_bundle(open_bundle(half_bundle), target)
    given = ["build", "--model", str(tiny_checkpoint), "--keep", "16", "-o", str(tmp_path / "b"), "--target", "rtx"]
    assert main(given) == 3
    assert main([*given, "--precision", "fp32"]) == 2
    assert main([*given[:-1], "cpu", "--compute-capability", "8.9"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert main(["compile", str(half_bundle), "--target", "cpu"]) == 2
    assert main(["compile", str(half_bundle), "--target", "orin-jetpack-6.2"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema_version=1), "schema_version 1"),
        (lambda record: record.update(manifest_sha256="0" * 64), "built from another manifest"),
        (lambda record: record.update(engines=3), "is not a record of engines"),
        (lambda record: record["engines"]["e"].update(file="../../manifest.json"), "is not there"),
        (lambda record: record["engines"]["e"].update(bytes=1), "is not there with 1 bytes"),
    ],
)
def test_a_damaged_record_is_refused(bundle_copy: Path, change: Any, message: str) -> None:
    folder = bundle_copy / "engines" / "rtx"
    folder.mkdir(parents=True)
    (folder / "e.engine").write_bytes(b"12345")
    digest = hashlib.sha256((bundle_copy / "manifest.json").read_bytes()).hexdigest()
    engine = {"file": "e.engine", "bytes": 5, "sha256": "0" * 64, "profiles": [], "peak_memory_bytes": 7}
    record = {
        "schema_version": 2, "target": "rtx", "builder": "b", "compute_capabilities": [], "precision": "float16",
        "manifest_sha256": digest, "engines": {"e": engine},
    }  # fmt: skip
    (folder / "engines.json").write_text(json.dumps(record))
    assert len(read_engines(open_bundle(bundle_copy))) == 1
    change(record)
    (folder / "engines.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match=message):
        read_engines(open_bundle(bundle_copy))
