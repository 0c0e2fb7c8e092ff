"""Energy of Intel's and AMD's processors by RAPL, as the kernel's powercap shows it.

The kernel's Documentation/power/powercap/powercap.rst: `energy_uj` counts microjoules from zero to
`max_energy_range_uj`, and from zero again.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from vtexport.measure.power.base import PERIOD_S, PLUS, NoPower, Reading, ReadingError
from vtexport.measure.power.sysfs import NumberFile, number_of, text_of

_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?$")
FOLDER = "sys/class/powercap"


class Counter:
    """A counter of microjoules that begins again at zero, summed up over its turns.

    It has to be read once a turn, which are minutes: 262 kJ at 200 W take 22.
    """

    def __init__(self, file: NumberFile, range_uj: int | None):
        self._file, self._range = file, range_uj
        self._last, self._turns = file.read(), 0

    def joules(self) -> float:
        """Energy since the counter's first zero, as far as it was read.

        Raises:
            ReadingError: it cannot be read, or fell and its range is not known.
        """
        now = self._file.read()
        if now < self._last:
            if self._range is None or self._range < self._last:
                raise ReadingError(f"{self._file.path} fell from {self._last} to {now}, and its range is not known")
            self._turns += self._range
        self._last = now
        return (self._turns + now) / 1e6

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Rapl:
    """Processor packages, and parts of them as "package-0/core"; as `base.PowerSource`."""

    name = "rapl"

    def __init__(self, counters: dict[str, Counter]):
        self._counters = counters
        self.rails = list(counters)
        # The memory's zone is within a package's folder and not within its energy.
        whole = [each for each in self.rails if re.fullmatch(r"package-\d+(/dram)?", each)]
        self.rail = PLUS.join(whole) or (self.rails[0] if len(self.rails) == 1 else "")
        self.period_s = PERIOD_S

    def read(self) -> Reading:
        """Joules of the chosen zones; stamped in the middle."""
        begin = time.perf_counter()
        joules = sum(self._counters[each].joules() for each in self.rail.split(PLUS))
        return Reading((begin + time.perf_counter()) / 2, joules=joules)

    def close(self) -> None:
        """Closes the files."""
        for counter in self._counters.values():
            counter.close()
        self._counters = {}


def find_rapl(root: Path = Path("/")) -> Rapl | NoPower:
    """The zones that this user can read."""
    folder = root / FOLDER
    # intel-rapl-mmio has the packages a second time.
    zones = sorted(
        (tuple(int(each) for each in match.groups() if each is not None), path)
        for path in folder.glob("intel-rapl:*")
        if (match := _ZONE.match(path.name))
    )
    counters: dict[str, Counter] = {}
    names: dict[tuple[int, ...], str] = {}
    denied = False
    for number, path in zones:
        name = text_of(path / "name") or path.name
        names[number] = name if len(number) == 1 else f"{names.get(number[:1], number[0])}/{name}"
        try:
            counters[names[number]] = Counter(NumberFile(path / "energy_uj"), number_of(path / "max_energy_range_uj"))
        except PermissionError:
            denied = True
        except (OSError, ReadingError):
            continue  # a zone that is switched off
    if counters:
        return Rapl(counters)
    if denied:
        return NoPower(
            f"RAPL's counters can be read by root only (sudo chmod a+r {folder}/intel-rapl:*/energy_uj permits it "
            "until the next start)"
        )
    return NoPower(f"no RAPL counters are in {folder}")
