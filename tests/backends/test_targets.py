from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vtexport
from vtexport.backends.recipe import Device
from vtexport.backends.targets import DEFAULT_TARGET, Target, find_devices, find_target, list_targets
from vtexport.build import build
from vtexport.cli.main import main
from vtexport.errors import UsageError, VtexportError

RECIPE = """
title = "a board"
runtime = "tensorrt"
buildable = false
opset = 20
precisions = ["fp16"]
"""
OLDEST_OF_THE_KERNELS = (8, 0)


def test_recipes_of_the_repository() -> None:
    targets = {target.name: target for target in list_targets()}
    assert targets["cpu"].buildable
    for target in targets.values():
        assert (target.tensorrt is not None) == (target.runtime == "tensorrt"), target.name
        if target.tensorrt is not None:
            # opset 23's Attention, RMSNormalization and RotaryEmbedding came with TensorRT 10.15
            version = tuple(map(int, target.tensorrt.split(".")))
            assert target.opset == (23 if version >= (10, 15) else 20), target.name


def test_every_figure_of_a_device_has_a_source() -> None:
    said = {"name", "title", "compute_capability", "sources"}
    devices = [(target, device) for target in list_targets() for device in target.devices]
    assert len({device.name for _, device in devices}) >= 10
    for target, device in devices:
        assert device.compute_capability in target.compute_capabilities, device.name
        fields = msgspec.structs.asdict(device)
        figures = {name for name in fields.keys() - said if fields[name] not in (None, False, {})}
        cited = {fact for source in device.sources for fact in source.facts}
        assert figures == cited, device.name
        assert device.memory_bytes, device.name
        assert set(device.tflops) <= {"fp32", "fp16", "bf16"}


DEVICE = """
[[devices]]
name = "small"
title = "a small one"
compute_capability = "8.7"
memory_gb = 8
"""


def test_targets_that_share_their_devices(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RECIPE + DEVICE)
    (tmp_path / "b.toml").write_text(RECIPE + 'devices_of = "a"')
    a, b = list_targets(tmp_path)
    assert [device.name for device in b.devices] == ["small"]
    assert b.devices == a.devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('devices_of = "c"', "devices_of names 'c'"),
        ('devices_of = "b"', "devices_of names 'b'"),
        ('devices_of = "a"' + DEVICE, "devices_of names 'a'; name a target with devices of its own"),
        (DEVICE + DEVICE, "two of its devices have one name"),
    ],
)
def test_devices_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(RECIPE + DEVICE)
    (tmp_path / "b.toml").write_text(RECIPE + text)
    with pytest.raises(VtexportError, match=f"target b cannot be used: {said}"):
        list_targets(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("memory_gb = 0", "> 0.0"),
        ('name = "A B"', "matching regex"),
        ("tflops = { fp8 = 1 }", "fp8"),
        ("x = 1", "unknown"),
    ],
)
def test_a_wrong_device_is_named(tmp_path: Path, line: str, said: str) -> None:
    name = line.partition(" ")[0]
    kept = [each for each in DEVICE.splitlines() if not each.startswith(name)]
    (tmp_path / "a.toml").write_text(RECIPE + "\n".join([*kept, line]))
    with pytest.raises(VtexportError, match=rf"a.toml is not a target recipe: .*{said}"):
        list_targets(tmp_path)


def test_a_device_behind_its_target() -> None:
    target, devices = find_devices("orin-jetpack-6.2/orin-nano-8gb")
    assert (target.name, [device.name for device in devices]) == ("orin-jetpack-6.2", ["orin-nano-8gb"])
    assert devices[0].memory_bytes == 7607 * 2**20
    assert len(find_devices("orin-jetpack-6.2")[1]) == 3
    assert find_devices("cpu")[1] == []
    with pytest.raises(
        UsageError, match=r"orin-jetpack-6\.2 has no device 'nano'; known: orin-nano-8gb, orin-nx-16gb, agx"
    ):
        find_devices("orin-jetpack-6.2/nano")
    with pytest.raises(UsageError, match="cpu has no device 'x'; known: none"):
        find_devices("cpu/x")
    bare = Device(name="x", title="x", compute_capability="8.7")
    assert bare.memory_bytes is None


def test_a_misspelt_target() -> None:
    assert find_target("cpu").runtime == "onnxruntime"
    with pytest.raises(UsageError, match=r"'orin-jetpak-7.2' is not known; did you mean orin-jetpack-7.2\? known: cpu"):
        find_target("orin-jetpak-7.2")


@pytest.mark.parametrize("text", ["title = ", 'title = "x"', 'title = "x"\nruntime = "caffe"', 'speed = "fast"'])
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(VtexportError, match=r"a.toml is not a target recipe"):
        list_targets(tmp_path)


def test_a_whole_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RECIPE + 'cuda = "12.6"\ncompute_capabilities = ["8.7", "12.1"]')
    (target,) = list_targets(tmp_path)
    assert (target.name, target.default_precision, target.compute_capabilities) == ("a", "fp16", ["8.7", "12.1"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('jetpack = "6.2"', "unknown field `jetpack`"),
        ("sm = [87]", "unknown field `sm`"),
        ("compute_capabilities = [87]", "Expected `str`, got `int`"),
        ('compute_capabilities = ["sm_87"]', "matching regex"),
        ("precisions = []", "length >= 1"),
        ('precisions = ["float16"]', "Invalid enum value 'float16'"),
    ],
)
def test_a_field_that_nobody_reads_or_understands_is_refused(tmp_path: Path, line: str, said: str) -> None:
    name = line.partition(" ")[0]
    kept = [each for each in RECIPE.splitlines() if not each.startswith(name)]
    (tmp_path / "a.toml").write_text("\n".join([*kept, line]))
    with pytest.raises(VtexportError, match=rf"a.toml is not a target recipe: .*{said}"):
        list_targets(tmp_path)


def test_every_field_of_a_recipe_is_read() -> None:
    package = Path(vtexport.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    unread = [name for name in Target.__struct_fields__ if not re.search(rf"(target|other|self)\.{name}\b", code)]
    assert unread == []


def test_the_list_of_targets_says_what_the_recipes_say(capsys: Any) -> None:
    assert main(["list", "targets", "--json"]) == 0
    rows = {row["target"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["orin-jetpack-6.2"]["runtime"] == "tensorrt 10.3, CUDA 12.6"
    assert rows["cpu"]["runtime"] == "onnxruntime"
    for target in list_targets():
        assert rows[target.name]["compute_capabilities"] == target.compute_capabilities
        assert rows[target.name]["devices"] == [device.name for device in target.devices]


def test_the_kernels_are_compiled_for_every_target() -> None:
    """Binary code of one compute capability runs on those of the same major number and no lower minor one.

    TensorRT-RTX goes back to 7.5, the kernels to 8.0 (docs/kernels.md).
    """
    cmake = (Path(vtexport.__file__).parents[1] / "plugins" / "cuda.cmake").read_text()
    (listed,) = re.findall(r"set\(VTX_KNOWN_ARCHITECTURES ([\d ]+)\)", cmake)
    compiled = {divmod(int(number), 10) for number in listed.split()}
    wanted = {
        (target.name, *map(int, capability.split(".")))
        for target in list_targets()
        for capability in target.compute_capabilities
    }
    assert len(wanted) >= 10
    for name, major, minor in wanted:
        if (major, minor) >= OLDEST_OF_THE_KERNELS:
            assert any(other[0] == major and other[1] <= minor for other in compiled), (name, major, minor)


def test_one_default_precision() -> None:
    """Of the verbs without a precision, and of the function."""
    default = find_target(DEFAULT_TARGET).default_precision
    assert inspect.signature(build).parameters["precision"].default == default == "fp32"
    assert [target.name for target in list_targets() if target.runtime == "onnxruntime"] == [DEFAULT_TARGET]
    assert msgspec.structs.asdict(find_target("rtx"))["precisions"][0] == find_target("rtx").default_precision == "fp16"
