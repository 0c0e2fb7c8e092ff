"""Energy by NVML, with a stand-in for pynvml that is held to the package where it is installed."""

from __future__ import annotations

import inspect
import sys

import pytest
from power_trees import FakeNvml

from vtexport.measure.power.base import NoPower, ReadingError
from vtexport.measure.power.nvml import NvmlPower, find_nvml


def found(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> NvmlPower:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    source = find_nvml()
    assert isinstance(source, NvmlPower)
    return source


def test_the_counter_of_energy_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([5_000_500], [70_000])
    source = found(monkeypatch, fake)
    assert (source.rails, source.rail) == (["gpu0"], "gpu0")
    reading = source.read()
    assert (reading.joules, reading.watts) == (5000.5, None)
    assert fake.opened == 1
    source.close()
    assert fake.opened == 0


def test_power_where_there_is_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = found(monkeypatch, FakeNvml([None], [70_250])).read()
    assert (reading.joules, reading.watts) == (None, 70.25)


def test_of_several_gpus_none_is_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = found(monkeypatch, FakeNvml([1000, None, None], [1, 2000, None]))
    assert (source.rails, source.rail) == (["gpu0", "gpu1"], "")
    source.rail = "gpu1"
    assert source.read().watts == 2.0
    source.rail = "gpu0+gpu1"  # power of both, because one has no counter
    assert source.read().watts == pytest.approx(2.001)
    source.rail = "gpu0"
    assert source.read().joules == 1.0


def test_a_reading_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([1000], [None])
    source = found(monkeypatch, fake)
    fake.energy_mj[0] = None
    with pytest.raises(ReadingError, match="NVML gives no reading of gpu0: Not Supported"):
        source.read()


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([None], [None])  # as on a Jetson
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert find_nvml() == NoPower("NVML tells neither energy nor power of this GPU (Not Supported)")
    assert fake.opened == 0
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([], []))
    assert find_nvml() == NoPower("NVML sees no GPU")

    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver([], []))
    assert find_nvml() == NoPower("NVML cannot be used (NVML Shared Library Not Found)")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    missing = find_nvml()
    assert isinstance(missing, NoPower)
    assert missing.reason == "the Python package nvidia-ml-py is not installed (pip install 'vtexport[nvml]')"


def test_the_stand_in_is_like_the_package() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert names
    for name in names:
        ours = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        assert ours == list(inspect.signature(getattr(pynvml, name)).parameters), name
    assert FakeNvml.NVML_CLOCK_SM == pynvml.NVML_CLOCK_SM
    assert issubclass(pynvml.NVMLError, Exception)
