"""The choice of a source and its rail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from power_trees import FakeNvml, monitor, zone

from vtexport.errors import UsageError
from vtexport.measure.power.base import NoPower
from vtexport.measure.power.sources import PowerSource, open_power


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "pynvml", None)


def opened(rail: str | None, device: str, root: Path) -> PowerSource:
    source = open_power(rail, device, root)
    assert not isinstance(source, NoPower), source.reason
    return source


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    for rail in (None, "VDD_IN"):
        found = open_power(rail, root=tmp_path)
        assert isinstance(found, NoPower)
        for each in ("no INA3221", "no tegrastats", "no RAPL", "nvidia-ml-py is not installed"):
            assert each in found.reason


def test_the_monitors_of_a_jetson_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor(tmp_path, 1, {"VDD_IN": (5000, 1000), "VDD_SOC": (5000, 200)})
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1], [1]))
    for device in ("cpu", "cuda"):
        source = opened(None, device, tmp_path)
        assert (source.name, source.rail) == ("ina3221", "VDD_IN")


def test_what_computes_decides_among_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "0", "package-0", 1)
    fake = FakeNvml([1], [1])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert (opened(None, "cpu", tmp_path).name, opened(None, "cuda", tmp_path).name) == ("rapl", "nvml")
    assert opened("package-0", "cuda", tmp_path).name == "rapl"
    assert opened("gpu0", "cpu", tmp_path).name == "nvml"
    assert fake.opened == 2  # the one that had not the rail was closed


def test_rails_that_are_added_up(tmp_path: Path) -> None:
    monitor(tmp_path, 1, {"VDD_IN": (5000, 1000), "VDD_SOC": (5000, 200), "VDD_CPU_GPU_CV": (5000, 300)})
    source = opened("VDD_SOC + VDD_CPU_GPU_CV+VDD_SOC", "cpu", tmp_path)
    assert source.rail == "VDD_SOC+VDD_CPU_GPU_CV"
    assert source.read().watts == pytest.approx(2.5)


@pytest.mark.parametrize("rail", ["VDD_CPU", "", "VDD_IN+", "VDD_IN+nothing"])
def test_a_rail_that_is_not_there(rail: str, tmp_path: Path) -> None:
    monitor(tmp_path, 1, {"VDD_IN": (5000, 1000)})
    zone(tmp_path, "0", "package-0", 1)
    with pytest.raises(UsageError, match=r"no power rail .* one of VDD_IN, package-0, or several"):
        open_power(rail, root=tmp_path)


def test_rails_of_which_none_is_the_whole(tmp_path: Path) -> None:
    monitor(tmp_path, 1, {"VDD_A": (5000, 1000), "VDD_B": (5000, 1000)})
    found = open_power(root=tmp_path)
    assert isinstance(found, NoPower)
    assert "ina3221 has VDD_A, VDD_B, none of which is known to be the whole" in found.reason
    assert opened("VDD_A+VDD_B", "cpu", tmp_path).read().watts == pytest.approx(10)
