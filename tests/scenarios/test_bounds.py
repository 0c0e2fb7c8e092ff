"""The lowest versions that pyproject.toml allows, installed and used: they answer as the current ones do.

The newest are what the rest of the suite runs on. Environments are kept between runs (`environments`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from answer_at_lowest import answers
from environments import ROOT, Environment, environment, install, lowest, requirements, tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.long

THIS = sys.version_info[1]
OLDEST = 10  # the oldest Python, JetPack 6.2's
NEWEST_ONNXRUNTIME_THERE = "1.23.2"
TESTED = {
    "device": ("", "cpu", "serve", "camera"),
    "exporter": ("", "export", "pytorch", "cpu", "plot", "jobs", "tools"),
}
NOT_TESTED = {
    "gpu": "onnxruntime-gpu takes an NVIDIA GPU; its versions are those of onnxruntime",
    "tensorrt": "no engine is built for TensorRT yet",
    "tensorrt-rtx": "a build of engines takes hundreds of megabytes of the package, and tests/backends has the newest",
    "nvml": "nvidia-ml-py takes an NVIDIA driver; tests/measure holds a stand-in to its signatures",
    "optimum": "tests/scenarios/test_optimum.py has it, lowest and newest",
    "dev": "tools of this repository alone, pinned in constraints.txt",
}
# Only the newest is at hand: a second PyTorch would be a download of hundreds of megabytes. It comes by links.
LINKED = "torch"
QUESTION = "What is on the table?"
SCRIPT = ROOT / "tests" / "support" / "answer_at_lowest.py"
SERVED = ROOT / "tests" / "support" / "serve_at_lowest.py"
WATCHED = ROOT / "tests" / "support" / "watch_at_lowest.py"
# Versions below the bound, which device makers still ship, and one that answers wrongly with the modern graphs
BELOW = ("1.18.0", "1.22.1", "1.23.0")


def pins(name: str, minor: int) -> dict[str, str]:
    wanted = lowest(requirements(TESTED[name], minor))
    wanted.pop(LINKED, None)
    return wanted


def at_lowest(name: str, minor: int) -> Environment:
    packages = [f"{package}=={version}" for package, version in pins(name, minor).items()]
    return environment(minor, packages, LINKED if name == "exporter" else None)


def run_in(env: Environment, *arguments: object, cwd: Path, **variables: str) -> str:
    """Output of a program that sees the sources of the clone and no library of native ops."""
    return env.run(*arguments, cwd=cwd, **{"PYTHONPATH": str(ROOT), "VTEXPORT_NATIVE": "0", **variables})


def check_versions(versions: dict[str, str], name: str, minor: int) -> None:
    """Checks that the test speaks of what was installed."""
    installed = {canonicalize_name(package): Version(version) for package, version in versions.items()}
    wanted = {package: Version(version) for package, version in pins(name, minor).items()}
    assert {package: installed[package] for package in wanted} == wanted


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of the current versions by bundle: one in float32 with two plans, one in float16."""
    from vtexport.build import build

    folder = tmp_path_factory.mktemp("current")
    build(str(tiny_checkpoint), folder / "whole", method="none")
    build(str(tiny_checkpoint), folder / "whole", method="prunesid", keep=16)
    build(str(tiny_checkpoint), folder / "half", method="prunesid", keep=16, precision="fp16")
    said = {name: answers(str(folder / name), str(photo), QUESTION) for name in ("whole", "half")}
    assert set(said["whole"]) == {"none modern", "none classic", "prunesid-16 modern", "prunesid-16 classic"}
    return {str(folder / name): said[name] for name in said}


def asked(env: Environment, photo: Path, bundles: dict[str, Any], cwd: Path, **variables: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run_in(env, SCRIPT, photo, QUESTION, *bundles, cwd=cwd, **variables))
    for bundle, current in bundles.items():
        there = said["answers"][bundle]
        assert there == {name: current[name] for name in there}, bundle
    return said


def current_text(folder: str, photo: Path) -> str:
    from vtexport.runtime.pipeline import Pipeline

    with Pipeline.open(folder, "prunesid-16", threads=1) as pipeline:
        return pipeline.generate(photo, QUESTION, max_new_tokens=8).text


def test_every_requirement_is_in_an_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"", *project["optional-dependencies"]}
    assert groups == {group for tested in TESTED.values() for group in tested} | set(NOT_TESTED)
    covered = {
        package for name in TESTED for minor in (OLDEST, THIS) for package in lowest(requirements(TESTED[name], minor))
    }
    named = [*project["dependencies"]]
    named += [line for group, lines in project["optional-dependencies"].items() if group in groups for line in lines]
    untested = {
        canonicalize_name(Requirement(line).name)
        for group in NOT_TESTED
        for line in project["optional-dependencies"][group]
    }
    assert {canonicalize_name(Requirement(line).name) for line in named} == covered | untested
    assert LINKED in covered


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["a>=1.2"], {"a": "1.2"}),
        (["a>=1.2", "b>=3,<4"], {"a": "1.2", "b": "3"}),
        (["A_b>=1.10", "a-b>=1.9"], {"a-b": "1.10"}),
    ],
)
def test_lowest_versions(wanted: list[str], found: dict[str, str]) -> None:
    assert lowest(map(Requirement, wanted)) == found


@pytest.mark.parametrize("wanted", ["a", "a<2", "a>1", "a==1", "a~=1.2", "a>=1,!=1.1"])
def test_a_bound_that_is_not_said_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match="does not say its lowest version"):
        lowest([Requirement(wanted)])


def test_skips_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    here, wanted = Environment(Path(sys.prefix)), ["vtexport-needs-no-such-package==1"]
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no package index answers: ERROR: No matching distribution"):
        install(here, wanted, "--no-index")
    monkeypatch.setenv("CI", "true")  # where an index has to be
    with pytest.raises(AssertionError, match="No matching distribution"):
        install(here, wanted, "--no-index")
    with pytest.raises(pytest.skip.Exception, match=r"there is no Python 3\.1 here"):
        environment(1, [])


def test_the_bound_leaves_python_310_an_onnxruntime() -> None:
    for group in ("cpu", "gpu"):
        (bound,) = lowest(requirements([group], OLDEST)).values()
        assert Version(bound) <= Version(NEWEST_ONNXRUNTIME_THERE)


@pytest.mark.parametrize("minor", sorted({OLDEST, THIS}))
def test_device_wing(minor: int, bundles: dict[str, Any], photo: Path, tmp_path: Path) -> None:
    env = at_lowest("device", minor)
    said = asked(env, photo, bundles, tmp_path)
    check_versions(said["versions"], "device", minor)
    whole, half = said["answers"].values()
    assert set(whole) == {"none modern", "none classic", "prunesid-16 modern", "prunesid-16 classic"}
    assert set(half) == {"prunesid-16 classic"}
    folder = next(iter(bundles))
    told = run_in(env, "-m", "vtexport", "doctor", folder, cwd=tmp_path)
    assert f"ONNX Runtime {pins('device', minor)['onnxruntime']}" in told
    assert "float32 by their modern graphs, float16 by their classic graphs" in told
    eval_ = ["eval", folder, "--plan", "prunesid-16", "--limit", "2", "--max-new-tokens", "2", "--json"]
    assert json.loads(run_in(env, "-m", "vtexport", *eval_, cwd=tmp_path))["samples"] == 2
    served = json.loads(run_in(env, SERVED, folder, "whole:prunesid-16", photo, QUESTION, cwd=tmp_path))
    assert served == {"text": current_text(folder, photo), "pieces": served["pieces"], "visual_tokens": 16}
    assert "".join(served["pieces"]) == served["text"]
    watched = run_in(env, WATCHED, folder, "prunesid-16", photo, QUESTION, tmp_path / "ride.avi", cwd=tmp_path)
    assert json.loads(watched.splitlines()[-1])["new_tokens"] == 8


@pytest.mark.parametrize("version", BELOW)
def test_older_runtimes_answer_with_the_classic_graphs(
    version: str, bundles: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    """The table of `vtexport.bundle.onnxruntime` is of what these do, not of what a patched version number says."""
    env = at_lowest("device", THIS)
    older = tmp_path / "older"
    install(env, [f"onnxruntime=={version}"], "--no-deps", "--target", str(older))
    path = {"PYTHONPATH": f"{older}:{ROOT}"}
    said = asked(env, photo, bundles, tmp_path, **path)
    for there in said["answers"].values():
        assert {name.split()[1] for name in there} == {"classic"}
    assert f"ONNX Runtime {version}" in run_in(env, "-m", "vtexport", "doctor", cwd=tmp_path, **path)


def test_exporter(
    tiny_checkpoint: Path, bundles: dict[str, Any], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = at_lowest("exporter", THIS)
    built, current = tmp_path / "built", next(iter(bundles.values()))
    model = ["--model", tiny_checkpoint, "--quiet"]
    run_in(env, "-m", "vtexport", "build", *model, "--method", "none", "--output", built, cwd=tmp_path)
    # builds the other plan, asks both at the same time, draws the plot
    asking = ["--limit", "2", "--max-new-tokens", "2", "--jobs", "2", "--threads", "1"]
    sweep = ["sweep", built, *model, "--methods", "prunesid", "--keep", "16", *asking]
    run_in(env, "-m", "vtexport", *sweep, cwd=tmp_path)
    assert next(tmp_path.glob("*/sweep.png")).stat().st_size > 1000
    there = asked(env, photo, {str(built): current}, tmp_path)
    check_versions(there["versions"], "exporter", THIS)
    assert there["answers"][str(built)] == current == answers(str(built), str(photo), QUESTION)
