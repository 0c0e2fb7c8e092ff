"""Energy of NVIDIA GPUs by NVML, through the Python package nvidia-ml-py (module `pynvml`), which is optional.

NVML's reference: nvmlDeviceGetTotalEnergyConsumption in millijoules since the driver was loaded (Volta and newer),
nvmlDeviceGetPowerUsage in milliwatts. On Jetson both are "Not Supported"; the module's own monitors serve there.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vtexport.errors import quoted
from vtexport.measure.power.base import PERIOD_S, PLUS, NoPower, Reading, ReadingError

INSTALL = "pip install 'vtexport[nvml]'"


@dataclass(frozen=True)
class Nvml:
    """NVML, begun; `close` ends what `open_nvml` began.

    Attributes:
        module: pynvml.
        devices: A handle for each GPU, in NVML's order, which is that of the PCI bus.
    """

    module: ModuleType
    devices: list[Any]

    def close(self) -> None:
        """Ends this use of NVML; other uses in the process go on."""
        self.module.nvmlShutdown()


def open_nvml() -> Nvml | NoPower:
    """NVML with the GPUs that it sees."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return NoPower(f"the Python package nvidia-ml-py is not installed ({INSTALL})")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return NoPower(f"NVML cannot be used ({quoted(error)})")
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        return NoPower(f"NVML names no GPU ({quoted(error)})")
    if not devices:
        pynvml.nvmlShutdown()
        return NoPower("NVML sees no GPU")
    return Nvml(pynvml, devices)


class NvmlPower:
    """GPUs as rails "gpu0", "gpu1", ...; as `base.PowerSource`. Counters of energy where all chosen ones have them."""

    name = "nvml"

    def __init__(self, nvml: Nvml, counted: dict[str, Any], metered: dict[str, Any]):
        self._nvml, self._counted, self._metered = nvml, counted, metered
        self.rails = sorted(counted.keys() | metered.keys(), key=lambda rail: int(rail.removeprefix("gpu")))
        # Of several GPUs it is not known which one computes: CUDA's order need not be NVML's.
        self.rail = self.rails[0] if len(self.rails) == 1 else ""
        self.period_s = PERIOD_S

    def read(self) -> Reading:
        """Joules since the driver was loaded, or watts; stamped in the middle."""
        module, chosen = self._nvml.module, self.rail.split(PLUS)
        counts = all(each in self._counted for each in chosen)
        ask = module.nvmlDeviceGetTotalEnergyConsumption if counts else module.nvmlDeviceGetPowerUsage
        handles = self._counted if counts else self._counted | self._metered
        begin = time.perf_counter()
        try:
            value = sum(ask(handles[each]) for each in chosen) / 1000
        except module.NVMLError as error:
            raise ReadingError(f"NVML gives no reading of {self.rail}: {quoted(error)}") from error
        at = (begin + time.perf_counter()) / 2
        return Reading(at, joules=value) if counts else Reading(at, watts=value)

    def close(self) -> None:
        """Ends this use of NVML."""
        self._nvml.close()


def find_nvml() -> NvmlPower | NoPower:
    """The GPUs whose energy or power NVML tells."""
    nvml = open_nvml()
    if isinstance(nvml, NoPower):
        return nvml
    counted, metered, last = {}, {}, ""
    for number, device in enumerate(nvml.devices):
        try:
            nvml.module.nvmlDeviceGetTotalEnergyConsumption(device)
            counted[f"gpu{number}"] = device
        except nvml.module.NVMLError:
            try:
                nvml.module.nvmlDeviceGetPowerUsage(device)
                metered[f"gpu{number}"] = device
            except nvml.module.NVMLError as error:
                last = quoted(error)
    if not counted and not metered:
        nvml.close()
        return NoPower(f"NVML tells neither energy nor power of this GPU ({last})")
    return NvmlPower(nvml, counted, metered)
