"""The wheel, installed where the clone is not: the device wing alone runs a bundle, on every Python there is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINORS = (10, 11, 12, 13)
# JetPack 6.2 has Python 3.10, and 1.23.2 is the newest ONNX Runtime for it.
ONNXRUNTIME = {10: "onnxruntime==1.23.2"}

pytestmark = pytest.mark.packaging


def interpreter(minor: int) -> str | None:
    """A Python 3.`minor` that starts: this one, one on the PATH, or one that pyenv keeps."""
    if sys.version_info[1] == minor:
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(str(path) for path in versions.glob(f"3.{minor}.*/bin/python"))
    for candidate in [shutil.which(f"python3.{minor}"), *kept]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the working tree but its files can get in."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = ["pyproject.toml", "README.md", "LICENSE", "vtexport", "engines", "plugins"]
    for name in tracked:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(folder / "source")], folder)
    return next(folder.glob("*.whl"))


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs outside the clone, without its path; shows what went wrong."""
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"
    return shown


def test_wheel_holds_recipes_and_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "vtexport/data/engines/cpu.toml",
        "vtexport/data/plugins/README.md",
        "vtexport/checkpoint/packaged/mini/tokenizer.json",
        "vtexport/checkpoint/packaged/mini/model.safetensors",
        "vtexport/checkpoint/packaged/llava/config.json",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 12e6


@pytest.mark.parametrize("minor", MINORS)
def test_a_clean_environment_runs_a_bundle(
    wheel: Path, tiny_bundle: Path, photo: Path, tmp_path: Path, minor: int
) -> None:
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"there is no Python 3.{minor} here")
    run([python, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run([*pip, f"vtexport[cpu] @ {wheel.as_uri()}", ONNXRUNTIME.get(minor, "onnxruntime")], tmp_path)
    if minor in ONNXRUNTIME:
        version = [pip[0], "-c", "import onnxruntime; print('onnxruntime==' + onnxruntime.__version__)"]
        assert run(version, tmp_path).stdout.strip() == ONNXRUNTIME[minor]
    command = str(tmp_path / "venv" / "bin" / "vtexport")
    given = ["--plan", "prunesid-16", "--image", str(photo)]
    ask = [*given, "--prompt", "What is this?", "--max-new-tokens", "8", "--json"]
    answer = json.loads(run([command, "run", str(tiny_bundle), *ask], tmp_path).stdout)
    classic = json.loads(run([command, "run", str(tiny_bundle), *ask, "--dialect", "classic"], tmp_path).stdout)
    from vtexport.runtime.pipeline import Pipeline

    # this environment's ONNX Runtime, which is the current one
    here = Pipeline.open(tiny_bundle, "prunesid-16").generate(photo, "What is this?", max_new_tokens=8)
    assert answer["keep_indices"] == here.keep_indices
    assert answer["token_ids"] == classic["token_ids"] == here.token_ids
    assert "cpu" in run([command, "list", "targets"], tmp_path).stdout
    run([command, "show", str(tiny_bundle), *given], tmp_path)
    run([command, "inspect", str(tiny_bundle), "--verify"], tmp_path)
    assert "ok" in run([command, "doctor", str(tiny_bundle)], tmp_path).stdout
    asked = [command, "eval", str(tiny_bundle), "--limit=9", "--max-new-tokens=2", "--json"]
    assert json.loads(run(asked, tmp_path).stdout)["samples"] == 9
    refused = subprocess.run(
        [command, "build", "--model", "mini", "--keep", "64"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 3
    assert "pip install 'vtexport[export]'" in refused.stderr
