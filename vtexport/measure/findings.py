"""Findings about this machine that measurements depend on: power, clocks, and memory for a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vtexport.backends.record import TEXT_TOKENS
from vtexport.bundle.memory import kv_bytes, weight_bytes
from vtexport.bundle.reader import Bundle
from vtexport.measure.power.base import NoPower
from vtexport.measure.power.sources import open_power
from vtexport.measure.power.sysfs import number_of, text_of
from vtexport.measure.state import is_jetson, read_state
from vtexport.runtime.findings import Finding

NEW_TOKENS = 128  # of an answer, as `Pipeline.generate` allows
_FASTEST = ("MAXN_SUPER", "MAXN")  # names of the power mode without a limit


def power(devices: Sequence[str] = ("cpu",), root: Path = Path("/")) -> list[Finding]:
    """The sources of power that measurements on these devices ("cpu", "cuda") would read, or what was looked for.

    Devices that share a source, as on a Jetson, share a finding.
    """
    found = {device: _power(device, root) for device in devices}
    if len({finding.what for finding in found.values() if finding.status == "ok"}) < 2:
        return list(found.values())[:1]
    return [replace(finding, what=f"{finding.what}, for answers on {device}") for device, finding in found.items()]


def _power(device: str, root: Path) -> Finding:
    source = open_power(device=device, root=root)
    if isinstance(source, NoPower):
        step = "energy is not measured here; docs/measuring-power.md says what each source needs"
        return Finding("measure energy", "missing", source.reason, step)
    source.close()
    others = [rail for rail in source.rails if rail != source.rail]
    more = f" (also {', '.join(others)})" if others else ""
    return Finding("measure energy", "ok", f"power is read from {source.name}, rail {source.rail}{more}")


def clocks(root: Path = Path("/")) -> Finding:
    """Power mode and clocks of a Jetson, the cores' governor elsewhere, with what sets them for measurements."""
    state = read_state(root=root)
    if not is_jetson(root):
        if state.governor is None:
            return Finding("information", "ok", f"the cores' governor is not known: {state.unknown['governor']}")
        step = "run sudo cpupower frequency-set -g performance for measurements"
        steady = state.governor == "performance"
        return Finding("information", "ok", f"the cores' governor is {state.governor}", None if steady else step)
    held = _clocks_held(root)
    mode = state.power_mode or "not known"
    gpu = "" if state.gpu_mhz is None else f", GPU at {state.gpu_mhz:.0f} MHz"
    what = f"Jetson: power mode {mode}, clocks {'held' if held else 'follow the load'}{gpu}"
    steps = []
    number, name = _fastest_mode(root)
    if not mode.endswith(f"({number})") and mode != str(number):
        steps.append(f"sudo nvpmodel -m {number} ({name})")
    if not held:
        steps.append("sudo jetson_clocks (until the next start)")
    return Finding("information", "ok", what, f"for measurements run {', then '.join(steps)}" if steps else None)


def _fastest_mode(root: Path) -> tuple[int, str]:
    """Number and name of the power mode without a limit; modules have it at different numbers."""
    settings = text_of(root / "etc/nvpmodel.conf") or ""
    modes = {name: int(number) for number, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", settings)}
    for name in _FASTEST:
        if name in modes:
            return modes[name], name
    return 0, "the fastest mode on most modules; sudo nvpmodel -p --verbose lists them"


def _clocks_held(root: Path) -> bool:
    """True where every core's lowest clock is its highest, as jetson_clocks leaves them."""
    folders = list((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    bounds = [(number_of(each / "scaling_min_freq"), number_of(each / "scaling_max_freq")) for each in folders]
    return bool(bounds) and all(low is not None and low == high for low, high in bounds)


def memory(bundle: Bundle, root: Path = Path("/")) -> Finding:
    """An estimate of the memory that the largest plan takes, against what is available."""
    available = read_state(root=root).available_memory_bytes
    manifest = bundle.manifest
    length = TEXT_TOKENS + NEW_TOKENS
    weights = weight_bytes(manifest)
    cache, plan = max((kv_bytes(manifest, plan, length), plan.name) for plan in manifest.plans)
    what = (
        f"memory, estimated: {_gib(weights)} of weights and {_gib(cache)} of keys and values ({plan}, one image, "
        f"{length} tokens of text); what the runtime computes with comes on top"
    )
    if available is None:
        return Finding("information", "ok", f"{what}; what is available is not known")
    what += f"; available: {_gib(available)}"
    if weights + cache <= available:
        return Finding("information", "ok", what)
    step = "close other programs, or build the bundle with --precision fp16 or a smaller --keep"
    return Finding("information", "missing", what, step)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
