"""`vtexport plugins build`: what it says, what it leaves, and which library a runtime then takes."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from vtexport.cli.main import main
from vtexport.errors import InputError, MissingDependencyError
from vtexport.plugins import build as building
from vtexport.plugins import libraries


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, native_library: Path) -> list[list[str]]:
    """Compilers in the form of a copy of what the tests have compiled; the commands that were given."""
    commands: list[list[str]] = []

    def run(command: list[str], what: str) -> str:
        commands.append(command)
        if "--build" in command:
            shutil.copy(native_library, Path(command[command.index("--build") + 1]) / libraries.ORT_LIBRARY)
        return ""

    monkeypatch.setattr(building, "_run", run)
    monkeypatch.setattr(building, "_nvcc", lambda: None)
    return commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where this installation looks for libraries."""
    monkeypatch.setattr(libraries, "default_folder", lambda: tmp_path / "plugins")
    monkeypatch.setattr(building, "default_folder", lambda: tmp_path / "plugins")
    monkeypatch.delenv(libraries.SWITCH, raising=False)
    return tmp_path / "plugins"


def test_built_libraries_are_found(folder: Path, compiled: list[Any], capsys: Any) -> None:
    assert libraries.choose_library() == libraries.Choice(None, "it is not built")
    assert main(["plugins", "build", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder / platform.machine())
    assert list(told["libraries"]) == [libraries.ORT_LIBRARY]
    assert set(told["missing"]) == {building.KERNELS, building.PLUGIN}
    assert libraries.choose_library() == libraries.Choice(folder / platform.machine() / libraries.ORT_LIBRARY)


def test_what_cannot_be_built_is_said(folder: Path, compiled: list[Any], capsys: Any) -> None:
    assert main(["plugins", "build"]) == 0
    shown = capsys.readouterr().out
    assert f"not built: {building.KERNELS}: " in shown
    assert f"not built: {building.PLUGIN}: " in shown


def test_a_bundle_s_own_libraries_are_never_loaded(
    tmp_path: Path, folder: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a bundle, which is data from anywhere, must not run code that lies in it."""
    building.build_libraries(tmp_path / "bundle" / "plugins")
    monkeypatch.chdir(tmp_path / "bundle")
    assert libraries.choose_library() == libraries.Choice(None, "it is not built")


def test_the_switch_takes_the_function_bodies(
    folder: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    building.build_libraries()
    assert libraries.choose_library().library is not None
    monkeypatch.setenv(libraries.SWITCH, "0")
    assert libraries.choose_library() == libraries.Choice(None, f"{libraries.SWITCH} is 0")


def test_a_library_of_other_sources_is_not_taken(folder: Path, compiled: list[Any]) -> None:
    record = building.build_libraries().folder / libraries.RECORD
    content = json.loads(record.read_text())
    others = {"sources": {libraries.ORT_LIBRARY: "0" * 64}}
    for change, reason in ((others, "other sources"), ({"abi_version": 0}, "another version")):
        record.write_text(json.dumps(content | change))
        choice = libraries.choose_library()
        assert choice.library is None
        assert reason in choice.reason
    record.write_text("{")
    assert "cannot be read" in libraries.choose_library().reason


@pytest.mark.parametrize(
    ("changed", "library", "is_stale"),
    [
        ("cpu/eigen.cpp", libraries.ORT_LIBRARY, True),
        ("common/check.h", libraries.ORT_LIBRARY, True),
        ("CMakeLists.txt", libraries.ORT_LIBRARY, True),
        ("onnxruntime/exports.map", libraries.ORT_LIBRARY, True),
        ("kernels/eigen.cu", libraries.ORT_LIBRARY, False),
        ("tensorrt/plugin.cpp", libraries.ORT_LIBRARY, False),
        ("cuda.cmake", libraries.ORT_LIBRARY, False),
        ("README.md", libraries.ORT_LIBRARY, False),
        ("kernels/eigen.cu", building.KERNELS, True),
        ("tensorrt/plugin.cpp", building.KERNELS, False),
        ("cpu/eigen.cpp", building.PLUGIN, False),
        ("tensorrt/core/op.cpp", building.PLUGIN, True),
    ],
)
def test_a_library_is_stale_after_changes_of_what_it_is_built_from(
    changed: str, library: str, is_stale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = shutil.copytree(libraries.data_folder("plugins"), tmp_path / "sources")
    monkeypatch.setattr(libraries, "data_folder", lambda name: sources)
    before = libraries.sources_hash(library)
    with (sources / changed).open("a") as file:
        file.write("\n")
    assert (libraries.sources_hash(library) != before) == is_stale


def test_the_folder_names_what_is_in_it() -> None:
    said = "-- CUDA kernels for 87-real;90-real by nvcc 12.6.85\n"
    cpu = {libraries.ORT_LIBRARY: ""}
    every, machine = cpu | {building.KERNELS: "", building.PLUGIN: ""}, platform.machine()
    assert building.folder_name("", cpu, None) == machine
    assert building.folder_name(said, every, "10.3") == f"{machine}-trt10.3-cu12-sm87+90"
    del every[building.PLUGIN]
    assert building.folder_name(said, every, None) == f"{machine}-cu12-sm87+90"


@pytest.mark.parametrize(("macro", "version"), [("NV_TENSORRT_{}", "10.13"), ("TRT_{}_ENTERPRISE", "10.13")])
def test_the_version_of_tensorrts_headers(macro: str, version: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder"):
        building._tensorrt_version(tmp_path)
    (tmp_path / "NvInferRuntime.h").write_text("")
    lines = [f"#define {macro.format(part)} {number} //!< text" for part, number in (("MAJOR", 10), ("MINOR", 13))]
    (tmp_path / "NvInferVersion.h").write_text("\n".join(lines))
    assert building._tensorrt_version(tmp_path) == version
    (tmp_path / "NvInferVersion.h").write_text("\n".join(lines).replace("13", "2"))
    with pytest.raises(InputError, match=r"TensorRT 10\.2, and the plugin takes those of 10\.3"):
        building._tensorrt_version(tmp_path)


def test_a_plugin_that_was_asked_for_and_is_not_built_is_a_failure(
    tmp_path: Path, folder: Path, compiled: list[Any], capsys: Any
) -> None:
    (tmp_path / "NvInferRuntime.h").write_text("")
    (tmp_path / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 11\n#define NV_TENSORRT_MINOR 1\n")
    assert main(["plugins", "build", "--tensorrt-include", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert f"not built: {building.PLUGIN}: {building.NEEDS_KERNELS}" in shown
    assert (folder / platform.machine() / libraries.ORT_LIBRARY).is_file()


def test_a_bundle_gets_libraries_and_nothing_else(tmp_path: Path, folder: Path, compiled: list[Any]) -> None:
    output = tmp_path / "bundle" / "plugins"
    built = building.build_libraries(output, cpu_only=True).folder
    assert list(output.iterdir()) == [built]
    assert {each.name for each in built.iterdir()} == {libraries.ORT_LIBRARY, libraries.RECORD}


@pytest.mark.parametrize("below", ["", "further/below"])
def test_a_folder_that_cannot_be_written_to_is_said(below: str, tmp_path: Path, folder: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / "file" / below
    assert main(["plugins", "build", "--cpu-only", "--output", str(output)]) == 1
    shown = capsys.readouterr().err
    assert f"the folder {output} cannot be written to" in shown
    assert "give another one with --output" in shown
    assert not folder.exists()
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("tool", "advice"), [("cmake", "pip install cmake ninja"), ("g++", "install g\\+\\+ or clang")]
)
def test_missing_tools_are_said(tool: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = shutil.which
    gone = {"cmake": {"cmake"}, "g++": {"c++", "g++", "clang++"}}[tool]
    monkeypatch.setattr(
        building.shutil, "which", lambda name, path=None: None if name in gone else real(name, path=path)
    )
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependencyError, match=advice):
        building.build_libraries(tmp_path)


def test_a_compiler_that_fails_is_said_and_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself CMake would go on with the compiler and the headers of the build before."""
    run = building._run

    def configure_only(command: list[str], what: str) -> str:
        if "--build" in command:
            raise InputError("configured")
        return run(command, what)

    monkeypatch.setattr(building, "_run", configure_only)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(InputError, match=r"The C\+\+ compiler ./usr/bin/false. is not able"):
        building.build_libraries(cpu_only=True)
    monkeypatch.delenv("CXX")
    with pytest.raises(InputError, match="configured"):
        building.build_libraries(cpu_only=True)
    assert [each.name for each in folder.iterdir()] == [f".work-{platform.machine()}"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("-- found\nCMake Error at a/b.cmake:63 (message):\n  The compiler\n\n    \"x\"\n\n  fails.\n\nCall Stack:\n",
         'The compiler "x" fails.'),
        ("[1/2] c++\na.cpp:1:2: error: no\n  code\nninja: build stopped\n", "a.cpp:1:2: error: no"),
        ("one\ntwo\n\nthree\nfour\n", "two | three | four"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_one_line(said: str, reason: str) -> None:
    assert building._reason(said) == reason
