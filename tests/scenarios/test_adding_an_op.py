"""docs/adding-an-op.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-an-op.md"
pytestmark = pytest.mark.long
# The new option in the reference, the function's body, and both native forms.
TRY = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from emulated_kernels import build
from native_ops.calls import HostRunner, encoder_call

from vtexport.pruning import op_model, select

rng = np.random.default_rng(5)
inputs = {"features": rng.standard_normal((1, 48, 16), np.float32), "text_embeds": rng.random((1, 7, 16), np.float32)}
sizes = {"grid": (6, 8), "keep": 6}
kept = {}
emulated = build(Path(sys.argv[2]))
for floor in (0.0, 0.9):
    chosen = select("cdpruner", inputs["features"], text_embeds=inputs["text_embeds"], floor=floor, **sizes)
    kept[floor] = chosen.keep_indices.tolist()
    call = encoder_call("cdpruner", inputs, floor=floor, **sizes)
    for library, prefix in ((Path(sys.argv[1]), "vtx_cpu_"), (emulated, "vtx_cuda_")):
        assert HostRunner(library, prefix).run(call)["keep_indices"].tolist() == kept[floor], (prefix, floor)
    model = op_model("cdpruner", tokens=48, width=16, embedding_width=16, floor=floor, **sizes)
    for registered in (False, True):
        options = ort.SessionOptions()
        if registered:
            options.register_custom_ops_library(sys.argv[1])
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert session.run(["keep_indices"], inputs)[0].tolist() == kept[floor], (registered, floor)
assert kept[0.0] != kept[0.9]
next(each for each in model.graph.node[0].attribute if each.name == "floor").f = 2
try:
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
except Exception as error:
    assert "attribute floor is 2; give a number from 0 to 1" in str(error), error
else:
    raise AssertionError("it is taken")
"""


def _blocks(kind: str) -> list[tuple[str, str]]:
    """The page's blocks of a kind, each with what stands behind the kind."""
    return re.findall(rf"^```{kind} ?([^\n]*)\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def _shell(copy: Path, command: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(copy / each) for each in (".", "tests/support", "tools", "benchmarks")),
    }
    done = subprocess.run(command, shell=True, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the page's changes in it."""
    folder = tmp_path_factory.mktemp("copy") / "vtexport"
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "*.pyc")
    for name in ("vtexport", "tests", "tools", "benchmarks", "docs", "engines", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, change in _blocks("diff"):
        lines = change.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        text = (folder / path).read_text()
        if old.count("\n") == 1:  # the beginning of a line is enough to name it
            old, new = old.rstrip("\n"), new.rstrip("\n")
        assert text.count(old) == 1, f"{path} has {text.count(old)} times\n{old}"
        (folder / path).write_text(text.replace(old, new))
    _shell(folder, "python plugins/schema/generate.py")
    return folder


def test_the_pages_commands(copy: Path) -> None:
    ((_, commands),) = _blocks("sh")
    for command in commands.splitlines():
        _shell(copy, command)


def test_all_forms_have_the_new_option(copy: Path, tmp_path: Path) -> None:
    _shell(copy, f"vtexport plugins build --cpu-only --output {tmp_path / 'plugins'}")
    (library,) = (tmp_path / "plugins").glob("*/libvtexport_ort.so")
    script = tmp_path / "try.py"
    script.write_text(TRY)
    (tmp_path / "emulated").mkdir()
    _shell(copy, f"python {script} {library} {tmp_path / 'emulated'}")


def test_the_files_of_the_page_are_few(copy: Path) -> None:
    """Beside the schema and what follows from it: the reference with its body, and the two kernels."""
    generated = {"plugins/include/vtx_structures.h", "plugins/common/ops_table.h", "vtexport/plugins/op_structures.py"}
    changed = {
        str(path.relative_to(copy))
        for name in ("vtexport", "tests", "tools", "benchmarks", "docs", "engines", "plugins")
        for path in (copy / name).rglob("*")
        if path.is_file() and path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".toml", ".md"}
        if path.read_bytes() != (ROOT / path.relative_to(copy)).read_bytes()
    }
    assert changed - generated == {
        "plugins/schema/ops.toml",
        "vtexport/pruning/ops/cdpruner.py",
        "plugins/cpu/cdpruner.cpp",
        "plugins/kernels/greedy.cu",
        "docs/ops/cdpruner.md",
    }
