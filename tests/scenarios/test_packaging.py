"""The wheel, installed where the clone is not: the device wing alone runs a bundle, on every Python there is."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from environments import bare, environment, install, requirements, run
from wheels import build_wheel

MINORS = (10, 11, 12, 13)
# JetPack 6.2 has Python 3.10, and 1.23.2 is the newest ONNX Runtime for it.
ONNXRUNTIME = {10: "onnxruntime==1.23.2"}

pytestmark = [pytest.mark.packaging, pytest.mark.long]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_recipes_and_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "vtexport/data/engines/cpu.toml",
        "vtexport/data/plugins/README.md",
        "vtexport/checkpoint/packaged/mini/tokenizer.json",
        "vtexport/checkpoint/packaged/mini/model.safetensors",
        "vtexport/checkpoint/packaged/llava/config.json",
        "optimum/commands/register/vtexport.py",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 12e6


@pytest.mark.parametrize("minor", MINORS)
def test_a_clean_environment_runs_a_bundle(
    wheel: Path, tiny_bundle: Path, photo: Path, tmp_path: Path, minor: int
) -> None:
    # What the wheel asks for is kept between runs; the wheel itself gets an environment of its own.
    wanted = [f"{each.name}{each.specifier}" for each in requirements(["", "cpu"], minor)]
    dependencies = environment(minor, [*wanted, ONNXRUNTIME.get(minor, "onnxruntime")])
    env = bare(minor, tmp_path / "venv", beside=dependencies)
    install(env, [f"vtexport[cpu] @ {wheel.as_uri()}"])
    assert {path.name.partition("-")[0] for path in env.site_packages.glob("*.dist-info")} == {"vtexport"}
    if minor in ONNXRUNTIME:
        version = env.run("-c", "import onnxruntime; print('onnxruntime==' + onnxruntime.__version__)", cwd=tmp_path)
        assert version.strip() == ONNXRUNTIME[minor]
    command = str(tmp_path / "venv" / "bin" / "vtexport")
    given = ["--plan", "prunesid-16", "--image", str(photo)]
    ask = [*given, "--prompt", "What is this?", "--max-new-tokens", "8", "--json"]
    answer = json.loads(run([command, "run", str(tiny_bundle), *ask], tmp_path))
    from vtexport.runtime.pipeline import Pipeline

    # this environment's ONNX Runtime, which is the current one
    here = Pipeline.open(tiny_bundle, "prunesid-16").generate(photo, "What is this?", max_new_tokens=8)
    assert answer["keep_indices"] == here.keep_indices
    assert answer["token_ids"] == here.token_ids
    assert "cpu" in run([command, "list", "targets"], tmp_path)
    run([command, "show", str(tiny_bundle), *given], tmp_path)
    run([command, "inspect", str(tiny_bundle), "--verify"], tmp_path)
    assert "ok" in run([command, "doctor", str(tiny_bundle)], tmp_path)
    asked = [command, "eval", str(tiny_bundle), "--limit=9", "--max-new-tokens=2", "--json"]
    assert json.loads(run(asked, tmp_path))["samples"] == 9
    refused = subprocess.run(
        [command, "build", "--model", "mini", "--keep", "64"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 3
    assert "pip install 'vtexport[export]'" in refused.stderr


def test_building_takes_no_torch(wheel: Path, photo: Path, tmp_path: Path) -> None:
    """Tokenizer, processor and self-check included; what needs torch says so."""
    minor = sys.version_info[1]
    wanted = [f"{each.name}{each.specifier}" for each in requirements(["", "export", "cpu"], minor)]
    dependencies = environment(minor, wanted)
    assert not list(dependencies.site_packages.glob("torch"))
    env = bare(minor, tmp_path / "venv", beside=dependencies)
    install(env, [f"vtexport[export,cpu] @ {wheel.as_uri()}"])
    command = str(tmp_path / "venv" / "bin" / "vtexport")
    told = subprocess.run(
        [command, "build", "--model", "mini", "--keep", "64"], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    note = "note: PyTorch is not installed, so the vision tower's features were not compared"
    assert [line for line in told.stderr.splitlines() if "PyTorch" in line] == [note], "no advice of transformers'"
    ask = ["--image", str(photo), "--prompt", "What is this?", "--max-new-tokens", "8", "--json"]
    answer = json.loads(run([command, "run", "mini", *ask], tmp_path))
    from vtexport.build import build
    from vtexport.runtime.pipeline import Pipeline

    here = Pipeline(build("mini", tmp_path / "here", keep=64)).generate(photo, "What is this?", max_new_tokens=8)
    assert (answer["token_ids"], answer["keep_indices"]) == (here.token_ids, here.keep_indices)
    program = "from vtexport.pruning import apply; apply(None, method='prunesid', keep=64)"
    eager = subprocess.run([str(env.python), "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (
        "MissingDependencyError: PyTorch is not installed; run pip install 'vtexport[export,pytorch]'" in eager.stderr
    )
