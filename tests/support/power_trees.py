"""Parts of /sys and /proc as machines have them, in folders of the tests, and a stand-in for pynvml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def write(root: Path, files: Mapping[str, object]) -> None:
    """Writes each value and a line's end, as sysfs does."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def monitor(root: Path, number: int, rails: Mapping[str, tuple[int, int]]) -> Path:
    """An INA3221 with up to three rails of (millivolts, milliamperes), and the files that are no rails."""
    chip = Path(f"sys/class/hwmon/hwmon{number}")
    files: dict[str, object] = {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages"}
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        files |= {
            f"{chip}/in{channel}_label": label,
            f"{chip}/in{channel}_enable": 1,
            f"{chip}/in{channel}_input": millivolts,
            f"{chip}/curr{channel}_input": milliamperes,
            f"{chip}/in{channel + 3}_input": 40 * channel,  # the shunt's voltage
        }
    write(root, {**files, f"{chip}/in7_input": 120})
    return root / chip


def zone(root: Path, number: str, name: str, energy_uj: int, range_uj: int | None = 262_143_328_850) -> Path:
    """A zone of RAPL, such as "0" or "0:1"."""
    folder = Path(f"sys/class/powercap/intel-rapl:{number}")
    limit = {} if range_uj is None else {f"{folder}/max_energy_range_uj": range_uj}
    write(root, {f"{folder}/name": name, f"{folder}/energy_uj": energy_uj, **limit})
    return root / folder


class NVMLError(Exception):
    """pynvml's."""


class FakeNvml(ModuleType):
    """A stand-in for pynvml with the functions that vtexport calls, by the same parameters.

    Args:
        energy_mj: of each GPU; None for "Not Supported".
        power_mw: likewise.
    """

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1

    def __init__(self, energy_mj: list[int | None], power_mw: list[int | None], reasons: int | None = None):
        super().__init__("pynvml")
        self.energy_mj, self.power_mw, self.reasons = energy_mj, power_mw, reasons
        self.processes: list[list[Any]] = [[] for _ in energy_mj]
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.energy_mj)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self._supported(self.energy_mj[handle])

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self._supported(self.power_mw[handle])

    def nvmlDeviceGetClockInfo(self, handle: int, type: int) -> int:  # noqa: A002, N802
        return self._supported(1980 if type == self.NVML_CLOCK_SM else None)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        return self._supported(self.reasons)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return self.processes[handle]

    def runs(self, handle: int, pid: int, memory: int | None) -> None:
        """Has a process compute on a GPU."""
        self.processes[handle].append(SimpleNamespace(pid=pid, usedGpuMemory=memory))

    @staticmethod
    def _supported(value: int | None) -> int:
        if value is None:
            raise NVMLError("Not Supported")
        return value
