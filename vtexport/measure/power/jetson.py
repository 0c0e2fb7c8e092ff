"""Power rails of Jetson modules: the INA3221 monitors as the kernel shows them, or lines of tegrastats.

The monitors' files are described in the kernel's Documentation/hwmon/ina3221.rst: millivolts and milliamperes of up to
three channels a chip. Thor's carrier has an INA238 (microwatts) at the board's input besides. tegrastats prints the
same rails as `NAME NOWmW/MEANmW`, older releases without the unit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from vtexport.errors import quoted
from vtexport.measure.power.base import PERIOD_S, PLUS, NoPower, Reading, ReadingError
from vtexport.measure.power.sysfs import NumberFile, natural, text_of

# Inputs of a whole board or module: Orin NX and Nano, Xavier NX, TX2; Thor; Nano and TX1.
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
# Rails that add up to the module where it has no such input: AGX Orin, Thor's module, AGX Xavier. VDDQ_VDD2_1V8AO of
# AGX Orin is fed by VIN_SYS_5V0 and would count twice.
_PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
_NOT_CONNECTED = "NC"
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)(?:mW(?:/-?\d+mW){0,2}|/-?\d+)(?=\s|$)")
_TEGRASTATS_PERIOD_S = 0.2  # the tool takes some of the processor for every line
_FIRST_LINE_S = 5.0
_END_S = 2.0


def whole_module(rails: Sequence[str]) -> str | None:
    """The rail, or the sum of rails, that is all of the board's or module's power; None where it is not known."""
    for rail in _WHOLE:
        if rail in rails:
            return rail
    for parts in _PARTS:
        if set(parts) <= set(rails):
            return PLUS.join(parts)
    return rails[0] if len(rails) == 1 else None


class _Channel:
    """One rail of a monitor chip: the product of its files, which is a number of `unit` watts."""

    def __init__(self, paths: Sequence[Path], unit: float):
        self._files: list[NumberFile] = []
        self._unit = unit
        try:
            for path in paths:
                self._files.append(NumberFile(path))
            self.watts()
        except (OSError, ReadingError):
            self.close()
            raise

    def watts(self) -> float:
        product = self._unit
        for file in self._files:
            product *= file.read()
        return product

    def close(self) -> None:
        for file in self._files:
            file.close()


class Ina3221:
    """The monitors of a Jetson, read from sysfs without another process; as `base.PowerSource`."""

    name = "ina3221"

    def __init__(self, channels: dict[str, _Channel]):
        self._channels = channels
        self.rails = list(channels)
        self.rail = whole_module(self.rails) or ""
        self.period_s = PERIOD_S

    def read(self) -> Reading:
        """Volts times amperes of each rail, one after the other; stamped in the middle."""
        begin = time.perf_counter()
        watts = sum(self._channels[each].watts() for each in self.rail.split(PLUS))
        return Reading((begin + time.perf_counter()) / 2, watts=watts)

    def close(self) -> None:
        """Closes the files."""
        for channel in self._channels.values():
            channel.close()
        self._channels = {}


def find_ina3221(root: Path = Path("/")) -> Ina3221 | NoPower:
    """The monitors that this user can read."""
    folder = root / "sys/class/hwmon"
    channels: dict[str, _Channel] = {}
    denied: list[Path] = []
    for chip in sorted(folder.glob("hwmon*"), key=natural):
        for label, paths, unit in _channels(chip):
            try:
                channel = _Channel(paths, unit)
            except PermissionError:
                denied.append(chip)
            except (OSError, ReadingError):
                continue  # a channel that is not connected answers with an error
            else:
                channels[label if label not in channels else f"{label}@{chip.name}"] = channel
    if channels:
        return Ina3221(channels)
    if denied:
        return NoPower(
            f"the INA3221 in {denied[0]} can be read by root only "
            f"(sudo chmod a+r {denied[0]}/*_input permits it until the next start)"
        )
    return NoPower(f"no INA3221 is in {folder}")


def _channels(chip: Path) -> list[tuple[str, list[Path], float]]:
    """Label, files and unit of every channel of a monitor chip; empty for another kind of chip."""
    kind = text_of(chip / "name")
    if kind == "ina238":
        return [("VIN", [chip / "power1_input"], 1e-6)]
    if kind != "ina3221":
        return []
    found = []
    for path in sorted(chip.glob("in*_label"), key=lambda path: path.name):
        label, number = text_of(path), path.name.removeprefix("in").removesuffix("_label")
        off = text_of(chip / f"in{number}_enable") == "0"
        # The sum of the shunts' voltages has a label, too, and is no rail.
        if label and label != _NOT_CONNECTED and "shunt" not in label and not off:
            found.append((label, [chip / f"in{number}_input", chip / f"curr{number}_input"], 1e-6))
    return found


def parse_tegrastats(line: str) -> dict[str, float]:
    """Watts by rail in a line of tegrastats: the values of that time, not the means; empty where it has none."""
    found = {name: int(now) / 1000 for name, now in _RAIL.findall(line)}
    found.pop(_NOT_CONNECTED, None)
    return found


class Tegrastats:
    """Lines of NVIDIA's tegrastats, which runs as a child process until `close`; as `base.PowerSource`."""

    name = "tegrastats"

    def __init__(self, command: Sequence[str], period_s: float = _TEGRASTATS_PERIOD_S):
        self.period_s = period_s
        self.rails: list[str] = []
        self.rail = ""
        self._process = subprocess.Popen(
            [*command, "--interval", str(round(1000 * period_s))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # Also where nobody closes the source
        self._ending = weakref.finalize(self, _end, self._process)
        self._newest: tuple[float, bytes] | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=_listen, args=(weakref.ref(self), self._process, self._changed), name="tegrastats", daemon=True
        )
        self._thread.start()

    def first_line(self) -> str | None:
        """The first line, from which the rails are taken; None where none comes."""
        line = self._next(_FIRST_LINE_S + self.period_s)
        if line is None:
            return None
        self.rails = list(parse_tegrastats(line[1]))
        self.rail = whole_module(self.rails) or ""
        return line[1]

    def read(self) -> Reading:
        """The newest line, stamped when it came; waits for one that was not read yet."""
        patience = 3 * self.period_s + 1
        line = self._next(patience)
        if line is None:
            ended = self._process.poll()
            how = f"printed nothing for {patience:.1f} s" if ended is None else f"ended with {ended}"
            raise ReadingError(f"tegrastats {how}")
        watts = parse_tegrastats(line[1])
        missing = [each for each in self.rail.split(PLUS) if each not in watts]
        if missing:
            raise ReadingError(f"tegrastats printed a line without {', '.join(missing)}")
        return Reading(line[0], watts=sum(watts[each] for each in self.rail.split(PLUS)))

    def close(self) -> None:
        """Ends the child process."""
        self._ending()
        self._thread.join(_END_S)

    def _next(self, patience: float) -> tuple[float, str] | None:
        """The newest line that was not given yet; None where none comes in so many seconds, or tegrastats ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._process.poll() is not None, patience)
            newest, self._newest = self._newest, None
        return None if newest is None else (newest[0], newest[1].decode("utf-8", errors="replace"))


def _listen(source: weakref.ref[Tegrastats], process: subprocess.Popen[bytes], changed: threading.Condition) -> None:
    """Keeps the newest line; the pipe is never full, so tegrastats never waits and no line is old."""
    assert process.stdout is not None
    with process.stdout as lines:  # closing it ends a tegrastats that nobody has ended
        for line in lines:
            at = time.perf_counter()
            with changed:
                owner = source()
                if owner is None:
                    return
                owner._newest = (at, line)
                changed.notify_all()
            del owner
    process.wait()
    with changed:
        changed.notify_all()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child, by its own id, and waits for it."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_tegrastats(command: Sequence[str] | None = None) -> Tegrastats | NoPower:
    """tegrastats, started, where it prints rails for this user.

    Args:
        command: the program with its first arguments; looked for in PATH when None.
    """
    if command is None:
        found = shutil.which("tegrastats")
        if found is None:
            return NoPower("no tegrastats is in PATH")
        command = [found]
    try:
        source = Tegrastats(command)
    except OSError as error:
        return NoPower(f"{command[0]} cannot be started ({quoted(error, command[0])})")
    line = source.first_line()
    if source.rails:
        return source
    source.close()
    if line is None:
        return NoPower(f"{command[0]} printed nothing")
    return NoPower(f"{command[0]} prints no power rails for this user (with sudo it may)")
