"""Traces that vtexport leaves where nobody asked for them: none, in a home that nothing has used before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SWITCH = "ORT_DISABLE_TELEMETRY"


class Home:
    """A new home with a folder for temporary files in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, at home here; without variables that switch a library's habits."""
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
        places = {"HOME": self.folder, "XDG_CACHE_HOME": self.folder / "cache", "TMPDIR": self.folder / "tmp"}
        places |= {"XDG_CONFIG_HOME": self.folder / "config", "XDG_DATA_HOME": self.folder / "data"}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**kept, **{name: str(place) for name, place in places.items()}, **environment},
            capture_output=True,
            text=True,
        )

    def written(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize("verb", ["list", "inspect", "doctor", "run", "show", "eval", "build"])
def test_no_verb_writes_into_the_home(
    tiny_bundle: Path, tiny_checkpoint: Path, photo: Path, tmp_path: Path, home: Home, verb: str
) -> None:
    plan = ["--plan", "prunesid-16", "--image", photo]
    arguments: dict[str, list[object]] = {
        "list": ["methods"],
        "inspect": [tiny_bundle],
        "doctor": [tiny_bundle],
        "run": [tiny_bundle, *plan, "--prompt", "x?", "--max-new-tokens", 2],
        "show": [tiny_bundle, *plan, "-o", tmp_path / "kept.png"],
        "eval": [tiny_bundle, "--limit", 2, "--jobs", 2, "-o", tmp_path / "eval"],  # with a worker for each plan
        "build": ["--model", tiny_checkpoint, "--method", "none", "-o", tmp_path / "bundle"],
    }
    done = home.run("-m", "vtexport", verb, *arguments[verb])
    assert done.returncode == 0, done.stderr
    assert home.written() == []


ENTRIES = {
    "pipeline": "import vtexport.runtime.pipeline, onnxruntime",
    "package": "import vtexport, onnxruntime",
    "command line": "import vtexport.cli.main, onnxruntime",
    "check of graphs": "from vtexport.export.check import find_onnxruntime; find_onnxruntime()",
    "evaluation": "import vtexport.eval.evaluate, onnxruntime",
    "engines' worker": "import vtexport.backends.trt.worker, onnxruntime",
    "eager pruning": "import vtexport.pruning.eager, torch, transformers, huggingface_hub, onnxruntime",
}


@pytest.mark.parametrize("code", ENTRIES.values(), ids=list(ENTRIES))
def test_no_import_writes_into_the_home(home: Home, code: str) -> None:
    done = home.run("-c", f"{code}; import os; print(os.environ[{SWITCH!r}])")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert home.written() == []


@pytest.mark.parametrize("value", ["0", "1", "", "yes"])
def test_what_the_user_set_stays(home: Home, value: str) -> None:
    done = home.run("-c", f"import vtexport, os; print(os.environ[{SWITCH!r}])", **{SWITCH: value})
    assert done.stdout == f"{value}\n"


def test_the_switch_is_needed(home: Home) -> None:
    """The tests above can fail: this ONNX Runtime writes where nothing is switched."""
    import onnxruntime

    done = home.run("-c", "import onnxruntime")
    assert done.returncode == 0, done.stderr
    if not home.written():
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} writes no telemetry in this installation")
    assert any("Microsoft" in name for name in home.written())
