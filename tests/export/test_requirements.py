"""Packages in versions that building does not work with are named before they fail in their own ways."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from environments import tomllib
from packaging.requirements import Requirement

from vtexport.cli import doctor
from vtexport.cli.main import main
from vtexport.errors import MissingDependencyError
from vtexport.export.requirements import PACKAGES, check_versions, unfit
from vtexport.export.requirements import installed as installed_packages

ROOT = Path(__file__).parents[2]

NEEDED = [
    "numpy>=1.26", "tomli>=2.0; python_version < '3'", "transformers<6,>=5.6; extra == 'export'",
    "onnx-ir>=0.1.16; extra == 'export'", "safetensors>=2.9; extra == 'export'", "pytest>=99; extra == 'dev'",
]  # fmt: skip
INSTALLED = {
    "numpy": "2.4.6",
    "transformers": "5.23.0",
    "onnx-ir": "1.1.0",
    "safetensors": "2.13.0+cpu",
    "pytest": "9.2.0",
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that look installed, to be changed by the test."""
    versions = dict(INSTALLED)

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDED)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"safetensors": "2.15.0.dev20261101+cu130", "transformers": "5.24.0.dev0"}, []),
        ({"transformers": "5.5.4"}, [("transformers", "5.5.4", "<6,>=5.6")]),
        ({"transformers": "6.0.0"}, [("transformers", "6.0.0", "<6,>=5.6")]),
        ({"numpy": "1.24.4", "onnx-ir": "0.1.15"}, [("numpy", "1.24.4", ">=1.26"), ("onnx-ir", "0.1.15", ">=0.1.16")]),
    ],
)
def test_what_is_not_allowed_is_found(installed: dict[str, str], changes: dict[str, str], found: list[object]) -> None:
    installed |= changes
    assert unfit() == found


def test_what_is_missing_is_left_to_its_import(installed: dict[str, str]) -> None:
    del installed["transformers"]
    check_versions()


def test_building_stops_at_once(installed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed["transformers"] = "4.57.6"
    said = "building works with other versions than are installed: transformers 4.57.6 (<6,>=5.6 is needed); run pip"
    with pytest.raises(MissingDependencyError) as caught:
        check_versions()
    assert str(caught.value).startswith(said)
    assert main(["build", "--model", "mini", "--keep", "64", "--output", str(tmp_path / "bundle")]) == 3
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_many_of_them_stay_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [f"package-{i}>=2" for i in range(40)])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.0")
    with pytest.raises(MissingDependencyError) as caught:
        check_versions()
    assert len(str(caught.value)) < 300


def test_doctor_names_them(installed: dict[str, str]) -> None:
    installed |= {"transformers": "5.5.4"}
    (finding,) = [each for each in doctor.export_packages() if "5.5.4" in each.what and each.status == "missing"]
    assert finding.what == "for building: transformers 5.5.4 (<6,>=5.6 is needed)"
    assert "pip install 'vtexport[export]'" in str(finding.next_step)


def test_what_building_takes_is_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {Requirement(line).name for line in project["optional-dependencies"]["export"]}
    base = {Requirement(line).name for line in project["dependencies"]}
    assert set(PACKAGES) == extra - base
    assert set(PACKAGES) <= {name for name, version in installed_packages().items() if version}


def test_doctor_does_not_miss_what_building_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polygraphy takes a bundle's graphs; nothing here takes Polygraphy."""
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "polygraphy":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert [each.what for each in doctor.export_packages() if each.status == "missing"] == []
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vtexport").rglob("*.py")]
    assert not any("import polygraphy" in source or "from polygraphy" in source for source in sources)


def test_doctor_names_what_is_missing(installed: dict[str, str]) -> None:
    (finding,) = [each for each in doctor.export_packages() if each.status == "missing"]
    gone = [name for name in PACKAGES if name not in installed]
    assert finding.what == f"for building: {', '.join(gone)}"
    assert "pip install 'vtexport[export]' to build bundles here" in str(finding.next_step)


def test_this_environment_is_allowed() -> None:
    assert unfit() == []


def test_without_an_installation_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    assert unfit() == []
