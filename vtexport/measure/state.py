"""State of the machine that a measurement runs on: clocks, power mode, temperatures, throttling, load and memory.

Read from the kernel's files and, for a GPU, from NVML. What cannot be read is None, and `unknown` says why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vtexport.errors import quoted
from vtexport.measure.power.base import NoPower
from vtexport.measure.power.nvml import Nvml, open_nvml
from vtexport.measure.power.sysfs import natural, number_of, text_of

_GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b|gb10b")
_OFF_C = -200  # a sensor of a part that is switched off says -256 degrees
# NVML's clocks event reasons for clocks below what was set; nvml.h
_NVML_THROTTLES = {
    0x04: "the GPU's power limit",
    0x08: "hardware slowdown",
    0x20: "the GPU's temperature (software)",
    0x40: "the GPU's temperature (hardware)",
    0x80: "power brake",
}
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower")
_WARMER_C = 10.0  # of any sensor
_SLOWER = 0.1  # of a mean clock
# Of a Jetson's over-current counters
_MEANING = {
    "oc1_event_cnt": "the supply's voltage was too low",
    "oc2_event_cnt": "the mean current was too high",
    "oc3_event_cnt": "the current was too high at an instant",
    "core_throttle_count": "cores were too hot",
    "package_throttle_count": "the processor was too hot",
}


class MachineState(msgspec.Struct, kw_only=True):
    """State of the machine at one time; `unknown` has a reason for every name that is not known."""

    governor: str | None = None  # of cpufreq; several joined with ", "
    cpu_mhz: list[float] | None = None  # of every core that is on
    power_mode: str | None = None  # of a Jetson, such as "MAXN (0)"
    temperatures_c: dict[str, float] = {}  # by sensor
    throttled: bool | None = None  # at this time
    throttle_reasons: list[str] = []
    throttle_counts: dict[str, int] = {}  # since the start; what rose between two states happened between them
    load_average: list[float] | None = None  # runnable processes over 1, 5 and 15 minutes
    busy_s: float | None = None  # of all cores, since the start, with what a hypervisor took
    own_busy_s: float | None = None  # of this process and its ended children
    rss_bytes: int | None = None  # of this process
    peak_rss_bytes: int | None = None
    available_memory_bytes: int | None = None  # of the machine, or of the container that this is; without swapping
    device_memory_bytes: int | None = None  # of this process on the GPU
    gpu_mhz: float | None = None
    unknown: dict[str, str] = {}


def read_state(device: str = "cpu", root: Path = Path("/")) -> MachineState:
    """The state of this machine and process now.

    Args:
        device: "cpu", or "cuda" to ask NVML, too.
        root: below which /sys, /proc, /var and /etc are looked for.
    """
    state = MachineState()
    _processor(state, root)
    _busy(state, root)
    _power_mode(state, root)
    _temperatures(state, root)
    _throttling(state, root)
    _memory(state, root)
    _jetson_gpu(state, root)
    if device == "cuda":
        _nvml(state)
    elif state.gpu_mhz is None:
        state.unknown["gpu_mhz"] = "the device is the CPU, and no GPU has a devfreq folder"
    if device != "cuda":
        state.unknown["device_memory_bytes"] = "the device is the CPU"
    return state


def changes(before: MachineState, after: MachineState) -> list[str]:
    """Sentences on what may have moved a measurement between two states; empty where nothing known did."""
    said = [
        f"the machine throttled: {name} rose by {after.throttle_counts[name] - count}, "
        f"which says that {_MEANING.get(name, 'a limit was met')}"
        for name, count in before.throttle_counts.items()
        if after.throttle_counts.get(name, count) > count
    ]
    for when, state in (("before", before), ("after", after)):
        if state.throttled:
            said.append(f"the machine was throttled {when}: {', '.join(state.throttle_reasons)}")
    if (governor := after.governor or before.governor) and governor != "performance":
        said.append(f"cpufreq's governor was {governor}, so the cores' clocks follow their load")
    if before.power_mode != after.power_mode:
        said.append(f"the power mode was {before.power_mode} before and {after.power_mode} after")
    rises = {
        name: (celsius, after.temperatures_c[name])
        for name, celsius in before.temperatures_c.items()
        if name in after.temperatures_c
    }
    if rises:
        name, (cold, hot) = max(rises.items(), key=lambda item: item[1][1] - item[1][0])
        if hot - cold >= _WARMER_C:
            said.append(f"{name} rose from {cold:.0f} to {hot:.0f} °C")
    said += _slower("the cores' mean clock", _mean(before.cpu_mhz), _mean(after.cpu_mhz))
    said += _slower("the GPU's clock", before.gpu_mhz, after.gpu_mhz)
    return said


def is_jetson(root: Path = Path("/")) -> bool:
    """True on a Jetson, also in a container that sees its device tree."""
    compatible = text_of(root / "proc/device-tree/compatible") or ""
    return (root / "etc/nv_tegra_release").exists() or "nvidia,tegra" in compatible


def _processor(state: MachineState, root: Path) -> None:
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=natural)
    governors = [text_of(core / "cpufreq/scaling_governor") for core in cores]
    state.governor = ", ".join(dict.fromkeys(each for each in governors if each)) or None
    if state.governor is None:
        state.unknown["governor"] = "no core has a cpufreq folder, as in most virtual machines"
    clocks = [number_of(core / "cpufreq/scaling_cur_freq") for core in cores]
    state.cpu_mhz = [each / 1000 for each in clocks if each is not None] or _clocks_of_cpuinfo(root)
    if state.cpu_mhz is None:
        state.unknown["cpu_mhz"] = "neither cpufreq nor /proc/cpuinfo tells clocks"
    load = (text_of(root / "proc/loadavg") or "").split()[:3]
    try:
        state.load_average = [float(each) for each in load] if len(load) == 3 else None
    except ValueError:
        state.load_average = None
    if state.load_average is None:
        state.unknown["load_average"] = f"{root / 'proc/loadavg'} cannot be read"


def _busy(state: MachineState, root: Path) -> None:
    """Seconds of work of all cores and of this process; proc(5), /proc/stat and /proc/self/stat."""
    ticks = os.sysconf("SC_CLK_TCK")
    every = re.search(r"^cpu +([\d ]+)$", text_of(root / "proc/stat") or "", re.MULTILINE)
    # The name of the process stands in parentheses and may hold spaces and parentheses.
    own = (text_of(root / "proc/self/stat") or "").rpartition(")")[2].split()
    if every is None:
        state.unknown["busy_s"] = f"{root / 'proc/stat'} cannot be read"
    else:
        user, nice, system, _idle, _wait, *stolen = [int(each) for each in every[1].split()][:8]
        state.busy_s = (user + nice + system + sum(stolen)) / ticks
    if len(own) < 15:
        state.unknown["own_busy_s"] = f"{root / 'proc/self/stat'} cannot be read"
    else:
        state.own_busy_s = sum(int(each) for each in own[11:15]) / ticks


def _clocks_of_cpuinfo(root: Path) -> list[float] | None:
    text = text_of(root / "proc/cpuinfo") or ""
    return [float(each) for each in re.findall(r"^cpu MHz\s*: ([\d.]+)$", text, re.MULTILINE)] or None


def _power_mode(state: MachineState, root: Path) -> None:
    """The mode that nvpmodel has set: its own record, with the name that its settings give the number."""
    if not is_jetson(root):
        state.unknown["power_mode"] = "power modes are a Jetson's, and this is none"
        return
    match = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status") or "")
    if match is None:
        state.power_mode = _asked_nvpmodel() if root == Path("/") else None
        if state.power_mode is None:
            state.unknown["power_mode"] = "/var/lib/nvpmodel/status cannot be read, and nvpmodel -q says none"
        return
    number = int(match[1])
    settings = text_of(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID=0*{number}\s+NAME=(\S+?)\s*>", settings)
    state.power_mode = f"{name[1]} ({number})" if name else str(number)


def _asked_nvpmodel() -> str | None:
    """The mode as nvpmodel -q prints it: a line with the name, then one with the number."""
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-q"], capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", done.stdout)
    return f"{match[1]} ({match[2]})" if match else None


def _temperatures(state: MachineState, root: Path) -> None:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=natural):
        _temperature(state, text_of(zone / "type") or zone.name, zone / "temp")
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*"), key=natural):
        kind = text_of(chip / "name") or ""
        if kind in _CPU_SENSORS:
            for path in sorted(chip.glob("temp*_input")):
                label = text_of(path.with_name(path.name.replace("_input", "_label"))) or path.name.removesuffix(
                    "_input"
                )
                _temperature(state, f"{kind} {label}", path)
    if not state.temperatures_c:
        state.unknown["temperatures_c"] = "no thermal zone and no processor's sensor can be read"


def _temperature(state: MachineState, name: str, path: Path) -> None:
    millidegrees = number_of(path)
    if millidegrees is None or millidegrees / 1000 < _OFF_C:
        state.unknown[f"temperatures_c {name}"] = "the sensor's part is switched off, or the sensor gives no number"
    else:
        state.temperatures_c[name] = millidegrees / 1000


def _throttling(state: MachineState, root: Path) -> None:
    """Alerts that are on now, and counters of what has been.

    A Jetson has cooling devices called "...-throttle-alert" and counts its over-current events in hwmon's
    oc1 (supply voltage too low), oc2 (mean current) and oc3 (current at an instant). Intel's cores count theirs.
    """
    alerts = {
        text_of(device / "type") or "": number_of(device / "cur_state")
        for device in (root / "sys/class/thermal").glob("cooling_device*")
        if (text_of(device / "type") or "").endswith("throttle-alert")
    }
    known = {name: level for name, level in alerts.items() if level is not None}
    if known:
        state.throttle_reasons = sorted(name for name, level in known.items() if level)
        state.throttled = bool(state.throttle_reasons)
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*"), key=natural):
        for path in sorted(chip.glob("oc*_event_cnt")):
            if (count := number_of(path)) is not None:
                state.throttle_counts[path.name] = count
    for what in ("core", "package"):
        files = (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/thermal_throttle/{what}_throttle_count")
        counts = [count for path in files if (count := number_of(path)) is not None]
        if counts:
            # Every core of a package shows the package's count.
            state.throttle_counts[f"{what}_throttle_count"] = sum(counts) if what == "core" else max(counts)
    if not state.throttle_counts:
        state.unknown["throttle_counts"] = "no over-current counters and no cores' throttle counters are here"
    if state.throttled is None:
        counted = "; counters that rise tell it between two times" if state.throttle_counts else ""
        state.unknown["throttled"] = f"nothing here tells whether clocks are held down now{counted}"


def _memory(state: MachineState, root: Path) -> None:
    def kilobytes(path: str, field: str, name: str) -> int | None:
        match = re.search(rf"^{field}:\s+(\d+) kB$", text_of(root / path) or "", re.MULTILINE)
        if match is None:
            state.unknown[name] = f"{root / path} has no {field}"
        return None if match is None else 1024 * int(match[1])

    state.rss_bytes = kilobytes("proc/self/status", "VmRSS", "rss_bytes")
    state.peak_rss_bytes = kilobytes("proc/self/status", "VmHWM", "peak_rss_bytes")
    available = kilobytes("proc/meminfo", "MemAvailable", "available_memory_bytes")
    limit = _left_in_container(root)
    state.available_memory_bytes = available if available is None or limit is None else min(available, limit)


def _left_in_container(root: Path) -> int | None:
    """Bytes that the limit of this control group (version 2) leaves, file caches that can go included."""
    limit, used = (number_of(root / f"sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is None or used is None:  # no limit is the word "max"
        return None
    caches = re.search(r"^inactive_file (\d+)$", text_of(root / "sys/fs/cgroup/memory.stat") or "", re.MULTILINE)
    return max(0, limit - used + (int(caches[1]) if caches else 0))


def _jetson_gpu(state: MachineState, root: Path) -> None:
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU_DEVFREQ.search(device.name) and (hertz := number_of(device / "cur_freq")) is not None:
            state.gpu_mhz = hertz / 1e6
            return


def _nvml(state: MachineState) -> None:
    """The first GPU's clock, its reasons for a lower one, and this process's memory on all GPUs."""
    nvml = open_nvml()
    if isinstance(nvml, NoPower):
        state.unknown["device_memory_bytes"] = nvml.reason
        if state.gpu_mhz is None:
            state.unknown["gpu_mhz"] = nvml.reason
        return
    try:
        module, first = nvml.module, nvml.devices[0]
        if state.gpu_mhz is None:
            clock = _asked(nvml, state, "gpu_mhz", lambda: module.nvmlDeviceGetClockInfo(first, module.NVML_CLOCK_SM))
            state.gpu_mhz = None if clock is None else float(clock)
        # Older packages have the older name.
        newer = getattr(module, "nvmlDeviceGetCurrentClocksEventReasons", None)
        reasons = newer or module.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = _asked(nvml, state, "throttled", lambda: int(reasons(first)))
        if bits is not None:
            state.unknown.pop("throttled", None)
            state.throttle_reasons += [text for bit, text in _NVML_THROTTLES.items() if bits & bit]
            state.throttled = bool(state.throttle_reasons)
        state.device_memory_bytes = _asked(nvml, state, "device_memory_bytes", lambda: _own_memory(nvml))
        if state.device_memory_bytes is None:
            state.unknown.setdefault("device_memory_bytes", "NVML does not list this process, as within containers")
    finally:
        nvml.close()


def _own_memory(nvml: Nvml) -> int | None:
    own = [
        process.usedGpuMemory
        for device in nvml.devices
        for process in nvml.module.nvmlDeviceGetComputeRunningProcesses(device)
        if process.pid == os.getpid() and process.usedGpuMemory is not None
    ]
    return sum(own) if own else None


def _asked(nvml: Nvml, state: MachineState, name: str, ask: Callable[[], int | None]) -> int | None:
    try:
        return ask()
    except nvml.module.NVMLError as error:
        state.unknown[name] = f"NVML: {quoted(error)}"
        return None


def _mean(clocks: Sequence[float] | None) -> float | None:
    return sum(clocks) / len(clocks) if clocks else None


def _slower(what: str, before: float | None, after: float | None) -> list[str]:
    if before is None or after is None or after > (1 - _SLOWER) * before:
        return []
    return [f"{what} fell from {before:.0f} to {after:.0f} MHz"]
