"""Findings that measurements depend on: power, clocks, memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from power_trees import monitor, write

from vtexport.bundle.memory import kv_bytes, kv_bytes_by_layer, weight_bytes
from vtexport.bundle.reader import open_bundle
from vtexport.measure import findings

ORIN = {
    "etc/nv_tegra_release": "# R36",
    "etc/nvpmodel.conf": "".join(
        f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(["15W", "25W", "MAXN_SUPER"])
    ),
    "var/lib/nvpmodel/status": "pmode:0001",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": 729600,
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 1728000,
    "sys/class/devfreq/17000000.gpu/cur_freq": 306000000,
}
HELD = {"sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": 1728000}


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_power(tmp_path: Path) -> None:
    (finding,) = findings.power(root=tmp_path)
    assert (finding.ability, finding.status) == ("measure energy", "missing")
    assert "no INA3221 is in" in finding.what
    monitor(tmp_path, 1, {"VDD_IN": (5000, 1000), "VDD_SOC": (5000, 200)})
    (finding,) = findings.power(("cpu", "cuda"), tmp_path)
    assert (finding.status, finding.what) == ("ok", "power is read from ina3221, rail VDD_IN (also VDD_SOC)")


def test_power_of_a_server_is_told_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter:
        def __init__(self, name: str, rail: str):
            self.name, self.rail, self.rails = name, rail, [rail]

        def close(self) -> None:
            pass

    sources = {"cpu": Counter("rapl", "package-0"), "cuda": Counter("nvml", "gpu0")}
    monkeypatch.setattr(findings, "open_power", lambda device, root: sources[device])
    assert [finding.what for finding in findings.power(("cpu", "cuda"))] == [
        "power is read from rapl, rail package-0, for answers on cpu",
        "power is read from nvml, rail gpu0, for answers on cuda",
    ]


@pytest.mark.parametrize(
    ("files", "what", "step"),
    [
        (
            {},
            "Jetson: power mode 25W (1), clocks follow the load, GPU at 306 MHz",
            "for measurements run sudo nvpmodel -m 2 (MAXN_SUPER), then sudo jetson_clocks (until the next start)",
        ),
        (
            {"var/lib/nvpmodel/status": "pmode:0002"},
            "Jetson: power mode MAXN_SUPER (2), clocks follow the load, GPU at 306 MHz",
            "for measurements run sudo jetson_clocks (until the next start)",
        ),
        (
            {"var/lib/nvpmodel/status": "pmode:0002", **HELD},
            "Jetson: power mode MAXN_SUPER (2), clocks held, GPU at 306 MHz",
            None,
        ),
        (
            {"var/lib/nvpmodel/status": "pmode:0000", "etc/nvpmodel.conf": "", **HELD},
            "Jetson: power mode 0, clocks held, GPU at 306 MHz",
            None,
        ),
        (
            {"var/lib/nvpmodel/status": "", "etc/nvpmodel.conf": "", **HELD},
            "Jetson: power mode not known, clocks held, GPU at 306 MHz",
            "for measurements run sudo nvpmodel -m 0 (the fastest mode on most modules; sudo nvpmodel -p --verbose "
            "lists them)",
        ),
    ],
)
def test_clocks_of_a_jetson(files: dict[str, object], what: str, step: str | None, tmp_path: Path) -> None:
    write(tmp_path, {**ORIN, **files})
    finding = findings.clocks(tmp_path)
    assert (finding.what, finding.next_step) == (what, step)


@pytest.mark.parametrize(("governor", "said"), [("performance", None), ("powersave", "cpupower frequency-set -g perf")])
def test_the_governor_elsewhere(governor: str, said: str | None, tmp_path: Path) -> None:
    assert "the cores' governor is not known" in findings.clocks(tmp_path).what
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": governor})
    finding = findings.clocks(tmp_path)
    assert finding.what == f"the cores' governor is {governor}"
    assert (finding.next_step is None) if said is None else said in str(finding.next_step)


def test_memory_for_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest = bundle.manifest
    plan = bundle.plan("prunesid-32")
    decoder = manifest.decoder
    row = 2 * 4 * decoder.num_key_value_heads * decoder.head_dim
    assert kv_bytes_by_layer(manifest, plan, 640) == [row * (32 + 640)] * decoder.num_hidden_layers
    assert kv_bytes(manifest, plan) == row * 32 * decoder.num_hidden_layers
    stored = sum(manifest.files[name].bytes for name in manifest.files if name.endswith(".safetensors"))
    assert 0.9 * stored < weight_bytes(manifest) <= stored
    assert findings.memory(bundle, tmp_path).what.endswith("what is available is not known")
    needed = (weight_bytes(manifest) + kv_bytes(manifest, plan, 640)) // 1024 + 1
    for available, status in ((needed, "ok"), (needed - 2, "missing")):
        write(tmp_path, {"proc/meminfo": f"MemAvailable:   {available} kB"})
        finding = findings.memory(bundle, tmp_path)
        assert (finding.ability, finding.status) == ("information", status)
        assert finding.what.startswith("memory, estimated: ")
        assert "(prunesid-32, one image, 640 tokens of text)" in finding.what
        assert (finding.next_step is None) == (status == "ok")
