"""The machine's state, read from trees as machines have them, and sentences on what changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from power_trees import FakeNvml, write

from vtexport.measure.state import MachineState, changes, is_jetson, read_state

GIB = 2**30
MEMORY = {
    "proc/self/status": "Name:\tpython\nVmPeak:\t  900000 kB\nVmHWM:\t  524288 kB\nVmRSS:\t  262144 kB",
    "proc/meminfo": "MemTotal:       8042208 kB\nMemFree:        204800 kB\nMemAvailable:   4194304 kB",
    "proc/loadavg": "1.50 0.75 0.25 2/300 4711",
    "proc/stat": "cpu  1000 200 300 90000 50 10 40 50 700 0\ncpu0 1 1 1 1 1 1 1 1 1 1",
    "proc/self/stat": "4711 (py (x) y) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 20 5 20 0 3 0 100",
}
ORIN = {
    **MEMORY,
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 729600,
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1728000,
    "sys/devices/system/cpu/cpuidle/current_driver": "none",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 56812,
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone1/temp": -256000,
    "sys/class/thermal/thermal_zone10/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone10/temp": "",
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert",
    "sys/class/thermal/cooling_device0/cur_state": 0,
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
    "sys/class/thermal/cooling_device1/cur_state": 0,
    "sys/class/thermal/cooling_device2/type": "pwm-fan",
    "sys/class/thermal/cooling_device2/cur_state": 3,
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": 0,
    "sys/class/hwmon/hwmon3/oc3_event_cnt": 12,
    "sys/class/devfreq/17000000.gpu/cur_freq": 1020000000,
    "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
}


def test_an_orin(tmp_path: Path) -> None:
    write(tmp_path, ORIN)
    state = read_state(root=tmp_path)
    unknown = state.unknown
    assert state == MachineState(
        governor="schedutil",
        cpu_mhz=[729.6, 1728.0],
        power_mode="MAXN_SUPER (2)",
        temperatures_c={"cpu-thermal": 56.812},
        throttled=False,
        throttle_counts={"oc1_event_cnt": 0, "oc3_event_cnt": 12},
        load_average=[1.5, 0.75, 0.25],
        busy_s=16.0,
        own_busy_s=3.25,
        rss_bytes=GIB // 4,
        peak_rss_bytes=GIB // 2,
        available_memory_bytes=4 * GIB,
        gpu_mhz=1020.0,
        unknown=unknown,
    )
    assert set(unknown) == {"temperatures_c cv0-thermal", "temperatures_c gpu-thermal", "device_memory_bytes"}
    assert is_jetson(tmp_path)


def test_an_orin_that_throttles(tmp_path: Path) -> None:
    write(tmp_path, {**ORIN, "sys/class/thermal/cooling_device1/cur_state": 1})
    state = read_state(root=tmp_path)
    assert (state.throttled, state.throttle_reasons) == (True, ["gpu-throttle-alert"])


def test_a_power_mode_without_a_name(tmp_path: Path) -> None:
    write(tmp_path, {**ORIN, "etc/nvpmodel.conf": "", "var/lib/nvpmodel/status": "pmode:0000"})
    assert read_state(root=tmp_path).power_mode == "0"
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    state = read_state(root=tmp_path)
    assert state.power_mode is None
    assert "/var/lib/nvpmodel/status cannot be read" in state.unknown["power_mode"]


def test_a_workstation(tmp_path: Path) -> None:
    cores = {
        f"sys/devices/system/cpu/cpu{core}/{name}": value
        for core in range(12)
        for name, value in {
            "cpufreq/scaling_governor": "performance" if core else "powersave",
            "thermal_throttle/core_throttle_count": core,
            "thermal_throttle/package_throttle_count": 7,
        }.items()
    }
    sensors = {
        "sys/class/hwmon/hwmon2/name": "coretemp",
        "sys/class/hwmon/hwmon2/temp1_label": "Package id 0",
        "sys/class/hwmon/hwmon2/temp1_input": 61000,
        "sys/class/hwmon/hwmon2/temp2_input": 58000,
        "sys/class/hwmon/hwmon3/name": "nvme",
        "sys/class/hwmon/hwmon3/temp1_input": 40000,
        "proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 3600.125\n\nprocessor\t: 1\ncpu MHz\t\t: 800.000",
    }
    write(tmp_path, {**MEMORY, **cores, **sensors})
    state = read_state(root=tmp_path)
    assert state.governor == "powersave, performance"
    assert state.cpu_mhz == [3600.125, 800.0]
    assert state.throttle_counts == {"core_throttle_count": sum(range(12)), "package_throttle_count": 7}
    assert state.throttled is None
    assert "counters that rise tell it" in state.unknown["throttled"]
    assert state.temperatures_c == {"coretemp Package id 0": 61.0, "coretemp temp2": 58.0}
    assert (state.power_mode, state.unknown["power_mode"]) == (None, "power modes are a Jetson's, and this is none")


@pytest.mark.parametrize(
    ("limit", "available"), [("max", 4 * GIB), (8 * GIB, 4 * GIB), (3 * GIB, 2 * GIB + GIB // 2), (GIB // 4, 0)]
)
def test_the_memory_of_a_container(limit: object, available: int, tmp_path: Path) -> None:
    group = {"max": limit, "current": GIB, "stat": f"anon {GIB // 2}\ninactive_file {GIB // 2}\nactive_file 4096"}
    write(tmp_path, {**MEMORY, **{f"sys/fs/cgroup/memory.{name}": value for name, value in group.items()}})
    assert read_state(root=tmp_path).available_memory_bytes == available


def test_nothing_to_read_is_nothing_known(tmp_path: Path) -> None:
    state = read_state(root=tmp_path)
    known = {name for name, value in msgspec.structs.asdict(state).items() if value not in (None, {}, [])}
    assert known == {"unknown"}
    nameless = {"throttle_reasons", "unknown"}
    assert set(state.unknown) == {*MachineState.__struct_fields__} - nameless


def test_this_process() -> None:
    state = read_state()
    assert state.rss_bytes is not None
    assert state.peak_rss_bytes is not None
    assert 0 < state.rss_bytes <= state.peak_rss_bytes
    assert msgspec.convert(msgspec.to_builtins(state), MachineState) == state


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [(0, []), (1, []), (0x04, ["the GPU's power limit"]), (0x21, ["the GPU's temperature (software)"])],
)
def test_a_gpu(bits: int, reasons: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([1, 1], [1, 1], reasons=bits)
    fake.runs(0, os.getpid(), 2 * GIB)
    fake.runs(0, os.getpid() + 1, 5 * GIB)
    fake.runs(1, os.getpid(), GIB)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    state = read_state("cuda", tmp_path)
    assert (state.gpu_mhz, state.device_memory_bytes) == (1980.0, 3 * GIB)
    assert (state.throttled, state.throttle_reasons) == (bool(reasons), reasons)
    assert not {"gpu_mhz", "device_memory_bytes", "throttled"} & set(state.unknown)
    assert fake.opened == 0


def test_a_gpu_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1], [1]))
    state = read_state("cuda", tmp_path)
    assert state.throttled is None
    assert state.unknown["throttled"] == "NVML: Not Supported"
    assert "does not list this process" in state.unknown["device_memory_bytes"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    state = read_state("cuda", tmp_path)
    assert "nvidia-ml-py is not installed" in state.unknown["gpu_mhz"]


BEFORE: dict[str, Any] = {
    "governor": "performance",
    "cpu_mhz": [2000.0, 2000.0],
    "gpu_mhz": 1000.0,
    "temperatures_c": {"cpu-thermal": 45.0, "gpu-thermal": 44.0},
    "throttle_counts": {"oc3_event_cnt": 3},
}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({}, []),
        (
            {"throttle_counts": {"oc3_event_cnt": 15, "oc1_event_cnt": 9}},
            ["the machine throttled: oc3_event_cnt rose by 12, which says that the current was too high at an instant"],
        ),
        (
            {"throttled": True, "throttle_reasons": ["gpu-throttle-alert"]},
            ["the machine was throttled after: gpu-throttle-alert"],
        ),
        (
            {"governor": "schedutil"},
            ["cpufreq's governor was schedutil, so the cores' clocks follow their load"],
        ),
        ({"power_mode": "15W (0)"}, ["the power mode was None before and 15W (0) after"]),
        ({"temperatures_c": {"cpu-thermal": 54.9, "gpu-thermal": 61.0}}, ["gpu-thermal rose from 44 to 61 °C"]),
        ({"temperatures_c": {"cpu-thermal": 54.9, "tj-thermal": 99.0}}, []),
        ({"cpu_mhz": [2000.0, 1500.0]}, ["the cores' mean clock fell from 2000 to 1750 MHz"]),
        ({"gpu_mhz": 305.5}, ["the GPU's clock fell from 1000 to 306 MHz"]),
        ({"cpu_mhz": None, "gpu_mhz": None, "governor": None}, []),
    ],
)
def test_changes(after: dict[str, Any], said: list[str]) -> None:
    assert changes(MachineState(**BEFORE), MachineState(**{**BEFORE, **after})) == said
