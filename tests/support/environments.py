"""Python environments of exact versions, made once and kept between runs outside the repository.

Each has a folder named by a hash of what it was asked for, so that a change of pyproject.toml's dependencies makes
another. After `_KEPT_DAYS` it is made anew, because what nobody pinned moves on, or removed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
_KEPT_DAYS = 14
_READY = "ready"  # written last, so an environment that a killed run left unfinished is made anew


@dataclass(frozen=True)
class Environment:
    """An environment, ready to run programs in."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python3*/site-packages"))

    def run(self, *arguments: object, cwd: Path, **variables: str) -> str:
        """Output of `python ARGUMENTS`; see `run`."""
        return run([str(self.python), *map(str, arguments)], cwd, **variables)


def run(command: list[str], cwd: Path, **variables: str) -> str:
    """Output of a command outside the clone, without the caller's paths; shows what went wrong."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
    around = {name: value for name, value in os.environ.items() if name not in hidden}
    shown = subprocess.run(command, cwd=cwd, env=around | variables, capture_output=True, text=True)
    assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"
    return shown.stdout


def requirements(groups: Iterable[str], minor: int) -> list[Requirement]:
    """What pyproject.toml asks for on Python 3.`minor`; the group "" is the base installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for group in groups for line in (extras[group] if group else project["dependencies"])]
    here = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    return [each for each in wanted if each.marker is None or each.marker.evaluate(here)]


def lowest(wanted: Iterable[Requirement]) -> dict[str, str]:
    """The lowest version of each package that all requirements allow together, by the package's name.

    Raises:
        ValueError: a requirement does not say its lowest version, in exactly one `>=`.
    """
    found: dict[str, Version] = {}
    for each in wanted:
        bounds = [clause.version for clause in each.specifier if clause.operator == ">="]
        if len(bounds) != 1 or {clause.operator for clause in each.specifier} - {">=", "<"}:
            raise ValueError(f"{each} does not say its lowest version in one >=")
        name = canonicalize_name(each.name)
        found[name] = max(Version(bounds[0]), found.get(name, Version("0")))
    return {name: str(version) for name, version in found.items()}


def interpreter(minor: int) -> str:
    """A Python 3.`minor` that starts: this one, one on the PATH, or one that pyenv keeps; skips the test without."""
    if sys.version_info[1] == minor:
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(str(path) for path in versions.glob(f"3.{minor}.*/bin/python"))
    for candidate in [shutil.which(f"python3.{minor}"), *kept]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"there is no Python 3.{minor} here")


def environment(minor: int, packages: Collection[str], linked: str | None = None) -> Environment:
    """A kept environment of Python 3.`minor` with these packages, as pip takes them, and what they need.

    Args:
        minor: of the Python.
        packages: such as "numpy==1.26".
        linked: a package of this environment that comes along with what it needs, by links and not by a download.
    """
    python = interpreter(minor)
    links = _links(linked) if linked else {}
    version = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    content = [version, sorted(packages), sorted(links.values()), Path(__file__).read_text(encoding="utf-8")]
    name = f"python3.{minor}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"
    folder = cache() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not (folder / _READY).exists():
            made = bare(minor, folder)
            install(made, packages)
            _link(made.site_packages, links)
            (folder / _READY).touch()
    return Environment(folder)


def bare(minor: int, folder: Path, beside: Environment | None = None) -> Environment:
    """A new environment in `folder`, without pip; it sees what is installed in `beside` as well."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(minor), "-m", "venv", "--without-pip", str(folder)], check=True)
    made = Environment(folder)
    if beside is not None:
        (made.site_packages / "beside.pth").write_text(f"{beside.site_packages}\n")
    return made


def install(into: Environment, packages: Iterable[str], *options: str) -> None:
    """Installs packages into an environment; skips the test where there is no index to get them from.

    Raises:
        AssertionError: pip finds no versions that go together, or another fault.
    """
    pip = [sys.executable, "-m", "pip", "--python", str(into.python), "install", "--quiet"]
    shown = subprocess.run([*pip, *options, *packages], capture_output=True, text=True)
    if shown.returncode and "(from versions: none)" in shown.stderr and "CI" not in os.environ:
        pytest.skip(f"no package index answers: {shown.stderr.strip().splitlines()[-1]}")
    assert shown.returncode == 0, f"{pip} {list(packages)}\n{shown.stderr}"


def cache() -> Path:
    """Where environments are kept."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "vtexport-tests"


def _remove_old(folder: Path) -> None:
    for ready in folder.glob(f"*/{_READY}"):
        if time.time() - ready.stat().st_mtime < _KEPT_DAYS * 24 * 3600:
            continue
        lock = FileLock(f"{ready.parent}.lock")
        try:
            with lock.acquire(timeout=0):
                ready.unlink()
                shutil.rmtree(ready.parent, ignore_errors=True)
        except Timeout:
            continue  # another run is about to use it
        Path(lock.lock_file).unlink(missing_ok=True)


@functools.cache
def _links(name: str) -> dict[str, str]:
    """What to link for a package and all it needs: name in site-packages -> path."""
    links: dict[str, str] = {}
    waiting, seen = [name], set()
    while waiting:
        package = canonicalize_name(waiting.pop())
        if package in seen:
            continue
        seen.add(package)
        found = importlib.metadata.distribution(package)
        top = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        links |= {each: str(found.locate_file(each)) for each in top}
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)
    return links


def _link(site_packages: Path, links: dict[str, str]) -> None:
    """Links what is not installed. Only now, because pip would replace what it sees, in the folder behind the links."""
    for name, path in links.items():
        if not (site_packages / name).exists() and not name.endswith(".pth"):
            (site_packages / name).symlink_to(path)
