"""Rules of the house: the two wings, in which imports run downward only, and how docstrings begin."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vtexport

PACKAGE = Path(vtexport.__file__).parent
# From the top of the house to its foundations; a module may import from its own floor and from lower ones.
HOST = ["build", "proof", "assemble", "export", "processing", "checkpoint", "models", "pruning", "graphs"]
DEVICE = ["serve", "integrations", "watch", "report", "eval", "validate", "measure", "runtime", "backends", "plugins"]
BRIDGE = ["bundle", "data_files", "dtypes", "errors", "version"]
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "filelock"}


# Of docstrings: a noun or a verb names the thing instead.
QUESTION_WORDS = ("What", "Whether", "How", "Where", "Which", "Who", "Whose", "When", "Why")


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, at its top level or, with `everywhere`, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else list(tree.body)
    checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(inner) for n in checking for inner in ast.walk(n)}
    found = set()
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    if folder.is_dir():
        return sorted(folder.rglob("*.py"))
    return [path for path in [PACKAGE / f"{part}.py"] if path.exists()]


def parts(modules: set[str]) -> set[str]:
    """The parts of vtexport among imported modules: `vtexport.runtime.images` is part `runtime`."""
    return {module.split(".")[1] for module in modules if module.startswith("vtexport.")}


def test_every_part_has_its_floor() -> None:
    known = {*HOST, *DEVICE, *BRIDGE, "cli", "data", "__init__", "__main__"}
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found <= known


@pytest.mark.parametrize("part", [*HOST, *DEVICE, *BRIDGE])
def test_imports_run_downward(part: str) -> None:
    wing = HOST if part in HOST else DEVICE if part in DEVICE else BRIDGE
    below = set(wing[wing.index(part) :]) | set(BRIDGE)
    # The one arrow between the wings: a build holds the device's own code to transformers (processing/self_check.py).
    below |= {"runtime"} if part == "processing" else set()
    for path in files(part):
        wrong = parts(imports(path)) - below
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


@pytest.mark.parametrize("part", [*DEVICE, *BRIDGE])
def test_device_wing_names_no_heavy_package(part: str) -> None:
    for path in files(part):
        assert not {module.partition(".")[0] for module in imports(path)} & HEAVY, path


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]
        lines = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
        wrong += [f"{name}: {line}" for line in lines if line.split(" ")[0].strip(",.:;") in QUESTION_WORDS]
    assert wrong == []


def modules_named(path: Path) -> set[str]:
    """Modules of vtexport that a file names in any import, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_modules_import_each_other() -> None:
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    below = {
        name: {each for each in modules_named(path) if each in names and each != name}
        # A package's face hands names on and is named with every module below it.
        for name, path in names.items()
        if path.name != "__init__.py"
    }
    below = {name: {each for each in imported if each in below} for name, imported in below.items()}
    while free := {name for name, imported in below.items() if not imported}:
        below = {name: imported - free for name, imported in below.items() if name not in free}
    assert not below, f"a circle, or modules above one: {below}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_command_line_loads_nothing_heavy() -> None:
    """`vtexport --help` and the device's verbs start without the exporter's packages."""
    code = (
        "import sys; from vtexport.cli.main import make_parser; make_parser();"
        "import vtexport.runtime.pipeline, vtexport.runtime.kept_tokens;"
        f"print(sorted(set(sys.modules) & {HEAVY | {'onnxruntime'}!r}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # tokenizers brings huggingface_hub as a dependency but does not import it
    assert shown.strip() == "[]"


def test_a_bundle_runs_with_the_host_wing_gone(tiny_bundle: Path, photo: Path) -> None:
    """Every package of the host wing, ours and others', raises on import; the answer comes all the same."""
    blocked = sorted(HEAVY | {f"vtexport.{part}" for part in HOST})
    code = f"""
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if any(name == gone or name.startswith(gone + ".") for gone in {blocked!r}):
            raise ImportError("gone: " + name)
sys.meta_path.insert(0, Gone())
from vtexport.cli.main import main
arguments = ["--plan", "prunesid-16", "--image", {str(photo)!r}, "--prompt", "x?", "--json"]
sys.exit(main(["run", {str(tiny_bundle)!r}, *arguments]))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert '"visual_tokens": 16' in shown.stdout
