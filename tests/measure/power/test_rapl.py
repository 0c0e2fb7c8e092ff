"""Counters of RAPL in trees of sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from power_trees import zone

from vtexport.measure.power import sysfs
from vtexport.measure.power.base import NoPower, ReadingError
from vtexport.measure.power.rapl import Rapl, find_rapl


def found(root: Path) -> Rapl:
    source = find_rapl(root)
    assert isinstance(source, Rapl)
    return source


def test_packages_and_their_parts(tmp_path: Path) -> None:
    first = zone(tmp_path, "0", "package-0", 5_000_000)
    zone(tmp_path, "0:0", "core", 3_000_000)
    memory = zone(tmp_path, "0:1", "dram", 1_000_000)
    zone(tmp_path, "1", "psys", 9_000_000)
    second = zone(tmp_path, "2", "package-1", 7_000_000)
    zone(tmp_path, "2:0", "dram", 0)
    source = found(tmp_path)
    assert source.rails == [
        "package-0", "package-0/core", "package-0/dram", "psys", "package-1", "package-1/dram",
    ]  # fmt: skip
    assert source.rail == "package-0+package-0/dram+package-1+package-1/dram"
    before = source.read()
    for folder, energy in ((first, 6_500_000), (memory, 1_250_000), (second, 7_000_001)):
        (folder / "energy_uj").write_text(f"{energy}\n")
    after = source.read()
    assert after.at > before.at
    assert after.joules == pytest.approx((before.joules or 0) + 1.5 + 0.25 + 1e-6, abs=1e-9)
    source.close()


def test_the_same_packages_by_memory_mapped_registers_are_left_out(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 1)
    zone(tmp_path, "0", "package-0", 1).rename(tmp_path / "sys/class/powercap/intel-rapl-mmio:0")
    assert isinstance(find_rapl(tmp_path), NoPower)
    zone(tmp_path, "0", "package-0", 1)
    assert found(tmp_path).rails == ["package-0"]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=30), st.integers(0, 999))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wrap_around(tmp_path: Path, steps: list[int], start: int) -> None:
    """A counter that counts to 1000 and begins again gives the sum of its steps, each less than a turn."""
    folder = zone(tmp_path, "0", "package-0", start, range_uj=1000)
    source = found(tmp_path)
    first, total, last = source.read().joules, start, None
    for step in steps:
        total += step
        (folder / "energy_uj").write_text(f"{total % 1000}\n")
        now = source.read().joules
        assert now is not None
        assert last is None or now >= last
        last = now
    assert first is not None
    assert last == pytest.approx(first + sum(steps) / 1e6)
    source.close()


def test_a_counter_that_falls_and_has_no_range(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0", 500, range_uj=None)
    source = found(tmp_path)
    (folder / "energy_uj").write_text("499\n")
    with pytest.raises(ReadingError, match="fell from 500 to 499"):
        source.read()
    source.close()


def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_rapl(tmp_path) == NoPower(f"no RAPL counters are in {tmp_path}/sys/class/powercap")
    zone(tmp_path, "0", "package-0", 1)

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sysfs.os, "open", refuse)
    refused = find_rapl(tmp_path)
    assert isinstance(refused, NoPower)
    assert f"sudo chmod a+r {tmp_path}/sys/class/powercap/intel-rapl:*/energy_uj" in refused.reason
