"""`optimum-cli export vtexport` from the wheel, beside optimum's lowest and newest version.

It takes a package index, or the environments that an earlier run kept (`environments`), and skips itself without.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from environments import Environment, bare, environment, install, lowest, requirements
from wheels import build_wheel

pytestmark = [pytest.mark.packaging, pytest.mark.long]

MINOR = sys.version_info[1]
VERSIONS = {"lowest": f"optimum=={lowest(requirements(['optimum'], MINOR))['optimum']}", "newest": "optimum"}


@pytest.fixture(scope="module", params=VERSIONS)
def env(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    wanted = [f"{each.name}{each.specifier}" for each in requirements(["", "export", "cpu"], MINOR)]
    dependencies = environment(MINOR, wanted, "torch")
    made = bare(MINOR, tmp_path_factory.mktemp("optimum") / "venv", beside=dependencies)
    # What else optimum needs is there: transformers, huggingface_hub, numpy, packaging and, by links, torch.
    install(made, [VERSIONS[request.param]], "--no-deps")
    install(made, [str(build_wheel(tmp_path_factory.mktemp("wheel")))], "--no-deps")
    return made


def command(env: Environment, name: str, *given: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = str(env.folder / "bin" / name)
    return subprocess.run([program, *map(str, given)], cwd=cwd, capture_output=True, text=True)


def test_it_builds_what_vtexport_builds(env: Environment, photo: Path, tmp_path: Path) -> None:
    given = ["-m", "mini", "--method", "prunesid", "--keep", "64", "--quiet"]
    built = command(env, "optimum-cli", "export", "vtexport", *given, "by-optimum", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "prunesid-64: 576 -> 64 visual tokens" in built.stdout
    other = command(env, "vtexport", "export", *given, "-o", "by-vtexport", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("by-optimum", "by-vtexport"))
    assert one["files"] == two["files"]
    assert one["plans"]
    assert "optimum-cli export vtexport -m mini" in json.dumps(one)
    ask = ["--image", photo, "--prompt", "How many objects are there?", "--json"]
    answer = command(env, "vtexport", "run", "by-optimum", *ask, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["keep_indices"]) == 64


@pytest.mark.parametrize(
    "wrong",
    [
        ["-m", "mini", "--method", "nope"],
        ["-m", "no-such-model", "--keep", "64"],
        ["-m", "mini", "--keep", "many"],
        ["-m", "mini", "--keep", "64", "--set", "center"],
        ["-m", "mini", "--keep", "64", "--precision", "int8"],
        ["-m", "mini", "--keep", "100000", "--debug"],
    ],
)
def test_errors_are_those_of_vtexport(env: Environment, wrong: list[str], tmp_path: Path) -> None:
    one = command(env, "optimum-cli", "export", "vtexport", *wrong, "out", cwd=tmp_path)
    two = command(env, "vtexport", "export", *wrong, "-o", "out", cwd=tmp_path)
    assert one.returncode == two.returncode == 2, one.stderr
    sentence, expected = (told.stderr.strip().splitlines()[-1].partition(": ")[2] for told in (one, two))
    assert sentence == expected != ""
    assert ("Traceback" in one.stderr) == ("--debug" in wrong)
    assert not list(tmp_path.iterdir())


def test_options_are_those_of_vtexport(env: Environment, tmp_path: Path) -> None:
    def options(*of: str) -> set[str]:
        shown = command(env, *of, "--help", cwd=tmp_path).stdout.split("options:")[1]
        return {word.strip(",") for word in shown.split() if word.startswith("--") and word.strip("-,")}

    theirs = options("vtexport", "export")
    assert options("optimum-cli", "export", "vtexport") == theirs - {"--output"}


def test_the_wheel_leaves_optimum_as_it_was(env: Environment, tmp_path: Path) -> None:
    """Last, because it uninstalls vtexport: its one file goes, and optimum's command line works as before."""
    register = env.site_packages / "optimum" / "commands" / "register"
    assert [path.name for path in register.glob("*.*")] == ["vtexport.py"], "a namespace package has no __init__.py"
    assert "vtexport" in command(env, "optimum-cli", "export", "--help", cwd=tmp_path).stdout
    pip = [sys.executable, "-m", "pip", "--python", str(env.python), "uninstall", "--quiet", "--yes", "vtexport"]
    subprocess.run(pip, check=True, capture_output=True)
    shown = command(env, "optimum-cli", "export", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "vtexport" not in shown.stdout
    assert not register.exists()
