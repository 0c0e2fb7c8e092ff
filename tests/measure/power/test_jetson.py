"""Rails of Jetson modules: tegrastats' lines, its process, and the monitors in sysfs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from power_trees import monitor, write

from vtexport.measure.power import jetson, sysfs
from vtexport.measure.power.base import NoPower, ReadingError
from vtexport.measure.power.jetson import Tegrastats, find_ina3221, find_tegrastats, parse_tegrastats, whole_module

DATA = Path(__file__).parents[2] / "data" / "power"
ORIN = {"VDD_GPU_SOC": 9.214, "VDD_CPU_CV": 1.602, "VIN_SYS_5V0": 4.746, "VDDQ_VDD2_1V8AO": 1.21}
RECORDED = {
    "nano-jetpack-4": ({"POM_5V_IN": 4.812, "POM_5V_GPU": 1.694, "POM_5V_CPU": 0.931}, "POM_5V_IN"),
    "tx2-jetpack-4": (
        {"VDD_IN": 6.177, "VDD_CPU": 1.22, "VDD_GPU": 1.602, "VDD_SOC": 0.877, "VDD_WIFI": 0.0, "VDD_DDR": 1.182},
        "VDD_IN",
    ),
    "agx-xavier-jetpack-5": (
        {"GPU": 5.233, "CPU": 0.769, "SOC": 2.154, "CV": 0.0, "VDDRQ": 1.077, "SYS5V": 2.996},
        "GPU+CPU+SOC+CV+VDDRQ+SYS5V",
    ),
    "xavier-nx-jetpack-5": ({"VDD_IN": 7.384, "VDD_CPU_GPU_CV": 2.703, "VDD_SOC": 1.414}, "VDD_IN"),
    "agx-orin-jetpack-5": (ORIN, "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"),
    "agx-orin-jetpack-6": (
        {"VDD_GPU_SOC": 2.39, "VDD_CPU_CV": -0.398, "VIN_SYS_5V0": 2.926, "VDDQ_VDD2_1V8AO": 0.504},
        "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0",
    ),
    "orin-nano-jetpack-6": ({"VDD_IN": 17.283, "VDD_CPU_GPU_CV": 8.125, "VDD_SOC": 3.604}, "VDD_IN"),
    "agx-thor-jetpack-7": (
        {"VDD_GPU": 38.115, "VDD_CPU_SOC_MSS": 15.62, "VIN_SYS_5V0": 9.144, "VIN": 74.402},
        "VIN",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_line_of_each_module(name: str) -> None:
    rails, whole = RECORDED[name]
    found = parse_tegrastats((DATA / f"{name}.txt").read_text().splitlines()[0])
    assert found == rails
    assert whole_module(list(found)) == whole


def test_every_sample_is_tested() -> None:
    assert {path.stem for path in DATA.glob("*.txt")} == {*RECORDED, "no-rails"}


def test_a_line_without_rails() -> None:
    assert parse_tegrastats((DATA / "no-rails.txt").read_text()) == {}


def test_a_third_value_and_cut_lines() -> None:
    assert parse_tegrastats("VDD_GPU 100mW/200mW/300mW VIN 5mW") == {"VDD_GPU": 0.1, "VIN": 0.005}
    assert parse_tegrastats("RAM 1/2MB VDD_IN 17283mW/151") == {}
    assert parse_tegrastats("VDD_IN -mW VDD_SOC 3.5mW/3mW") == {}


def test_rails_of_which_none_is_the_whole() -> None:
    assert whole_module(["VDD_A", "VDD_B"]) is None
    assert whole_module(["VDD_GPU_SOC"]) == "VDD_GPU_SOC"


def printing(tmp_path: Path, text: str, then: str = "") -> list[str]:
    """A stand-in for tegrastats that prints the lines of a file over and over, and takes its arguments."""
    program = tmp_path / "tegrastats.py"
    program.write_text(
        "import itertools, sys, time\n"
        "assert sys.argv[1] == '--interval'\n"
        f"for line in {text.splitlines()!r}{'' if then else ' * 10000'}:\n"
        "    print(line, flush=True); time.sleep(int(sys.argv[2]) / 1000)\n"
        f"{then}\n"
    )
    return [sys.executable, str(program)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "_TEGRASTATS_PERIOD_S", 0.02)
    monkeypatch.setattr(Tegrastats.__init__, "__defaults__", (0.02,))


@pytest.mark.usefixtures("quick")
def test_tegrastats_runs_until_it_is_closed(tmp_path: Path) -> None:
    source = find_tegrastats(printing(tmp_path, (DATA / "orin-nano-jetpack-6.txt").read_text()))
    assert isinstance(source, Tegrastats)
    pid = source._process.pid
    assert (source.rail, source.rails) == ("VDD_IN", ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"])
    readings = [source.read() for _ in range(3)]
    assert {reading.watts for reading in readings} <= {17.283, 18.022}
    assert readings[0].at < readings[1].at < readings[2].at <= time.perf_counter()
    source.rail = "VDD_CPU_GPU_CV+VDD_SOC"
    assert source.read().watts in (pytest.approx(8.125 + 3.604), pytest.approx(8.704 + 3.684))
    source.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("quick")
def test_tegrastats_ends_with_a_source_that_nobody_closed(tmp_path: Path) -> None:
    source = find_tegrastats(printing(tmp_path, (DATA / "orin-nano-jetpack-6.txt").read_text()))
    assert isinstance(source, Tegrastats)
    pid = source._process.pid
    del source
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("quick")
def test_tegrastats_that_ends_early(tmp_path: Path) -> None:
    source = find_tegrastats(printing(tmp_path, "VDD_IN 5000mW/5000mW", then="sys.exit(7)"))
    assert isinstance(source, Tegrastats)
    with pytest.raises(ReadingError, match=r"tegrastats ended with 7"):
        source.read()
    source.close()


@pytest.mark.usefixtures("quick")
def test_a_line_that_lacks_the_rail(tmp_path: Path) -> None:
    source = find_tegrastats(printing(tmp_path, "VDD_IN 5000mW/5000mW\nVDD_SOC 1mW/1mW"))
    assert isinstance(source, Tegrastats)

    def read_on() -> None:
        while True:
            source.read()

    with pytest.raises(ReadingError, match="a line without VDD_IN"):
        read_on()
    source.close()


@pytest.mark.usefixtures("quick")
def test_tegrastats_that_shows_no_rails(tmp_path: Path) -> None:
    command = printing(tmp_path, (DATA / "no-rails.txt").read_text())
    found = find_tegrastats(command)
    assert isinstance(found, NoPower)
    assert "prints no power rails for this user" in found.reason
    found = find_tegrastats(printing(tmp_path, "", then="pass"))
    assert isinstance(found, NoPower)
    assert "printed nothing" in found.reason


def test_no_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tegrastats() == NoPower("no tegrastats is in PATH")
    program = tmp_path / "tegrastats"
    program.write_text("no program")
    program.chmod(0o755)
    found = find_tegrastats()
    assert isinstance(found, NoPower)
    assert "cannot be started" in found.reason


def test_monitors_in_sysfs(tmp_path: Path) -> None:
    monitor(tmp_path, 10, {"VDDQ_VDD2_1V8AO": (1100, 400), "NC": (0, 0)})
    chip = monitor(tmp_path, 9, {"VDD_GPU_SOC": (19032, 480), "VDD_CPU_CV": (19032, -16), "VIN_SYS_5V0": (5008, 944)})
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "pwmfan", "sys/class/hwmon/hwmon0/in1_label": "VDD_IN"})
    source = find_ina3221(tmp_path)
    assert not isinstance(source, NoPower)
    assert source.rails == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert source.rail == "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    assert source.read().watts == pytest.approx(19.032 * 0.48 - 19.032 * 0.016 + 5.008 * 0.944)
    (chip / "curr1_input").write_text("960\n")
    source.rail = "VDD_GPU_SOC"
    assert source.read().watts == pytest.approx(19.032 * 0.96)
    (chip / "curr1_input").write_text("")
    with pytest.raises(ReadingError, match="curr1_input gives no number"):
        source.read()
    source.close()


def test_the_input_of_thor(tmp_path: Path) -> None:
    monitor(tmp_path, 1, {"VDD_GPU": (12040, 640), "VDD_CPU_SOC_MSS": (12040, 960), "VIN_SYS_5V0": (5088, 1740)})
    source = find_ina3221(tmp_path)
    assert not isinstance(source, NoPower)
    assert source.rail == "VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0"
    source.close()
    write(tmp_path, {"sys/class/hwmon/hwmon2/name": "ina238", "sys/class/hwmon/hwmon2/power1_input": 41250000})
    source = find_ina3221(tmp_path)
    assert not isinstance(source, NoPower)
    assert (source.rail, source.read().watts) == ("VIN", pytest.approx(41.25))
    source.close()


def test_channels_that_are_off_or_not_connected(tmp_path: Path) -> None:
    chip = monitor(tmp_path, 1, {"VDD_IN": (5000, 1000), "VDD_SOC": (5000, 200), "VDD_CPU_GPU_CV": (5000, 100)})
    (chip / "in2_enable").write_text("0\n")
    (chip / "in3_input").write_text("")  # the driver answers with an error
    source = find_ina3221(tmp_path)
    assert not isinstance(source, NoPower)
    assert source.rails == ["VDD_IN"]
    source.close()


def test_monitors_that_only_root_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = monitor(tmp_path, 1, {"VDD_IN": (5000, 1000)})
    assert find_ina3221(tmp_path / "elsewhere") == NoPower(f"no INA3221 is in {tmp_path}/elsewhere/sys/class/hwmon")

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sysfs.os, "open", refuse)
    found = find_ina3221(tmp_path)
    assert isinstance(found, NoPower)
    assert f"sudo chmod a+r {chip}/*_input" in found.reason
