"""Energy of answers and stages on a source whose power is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_measurement import SETTINGS, contenders, header, noise

from vtexport.errors import UsageError
from vtexport.measure import energy
from vtexport.measure.answer import MeasuredPlan, Settings, Stopped
from vtexport.measure.bench import Bench, Hooks, Request
from vtexport.measure.energy import EnergyMeter, Windows
from vtexport.measure.partial import Lines
from vtexport.measure.power.sampler import SamplerReport
from vtexport.measure.power.sources import Energy, NoPower
from vtexport.measure.record import EnergyWindow, PowerFacts

SHORT = Windows(idle=0.1, answers=0.1, stage=0.1)


class Steady:
    """A rail that gives 20 W, and 5 W more when it is told so; with `broken` no reading."""

    name, rails, rail, period_s = "steady", ["VDD_IN", "VDD_CPU"], "VDD_IN", 0.01

    def __init__(self, broken: bool = False):
        self.broken, self.watts, self.closed = broken, 20.0, False

    def close(self) -> None:
        self.closed = True


class Sampler:
    """Instead of the thread that reads, which a busy machine lets miss readings."""

    def __init__(self, source: Steady):
        self._source = source

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def energy(self, start: float, end: float) -> Energy | None:
        if self._source.broken:
            return None
        return Energy(
            joules=self._source.watts * (end - start), mean_w=self._source.watts, samples=9, seconds=end - start
        )

    def report(self) -> SamplerReport:
        return SamplerReport(9, 0, 0, 0, "the sensor went away" if self._source.broken else None, None)


@pytest.fixture(autouse=True)
def known_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "PowerSampler", Sampler)


@pytest.fixture
def plan(tiny_bundle: Path) -> MeasuredPlan:
    return MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], SETTINGS)


def meter_of(monkeypatch: pytest.MonkeyPatch, found: Any) -> EnergyMeter:
    monkeypatch.setattr(energy, "open_power", lambda rail, device: found)
    return EnergyMeter(None)


def test_joules_are_power_by_time_and_idle_comes_off(
    plan: MeasuredPlan, noisy_image: np.ndarray, monkeypatch: Any
) -> None:
    source = Steady()
    meter = meter_of(monkeypatch, source)
    idle = meter.idle(0.1)
    assert (idle.plan, idle.what, idle.count) == (None, "idle", 0)
    assert idle.mean_w == pytest.approx(20)
    assert idle.joules_each is None
    source.watts = 25.0
    found = meter.answers(plan, [noisy_image], 0.1)
    assert (found.plan, found.what) == ("prunesid-16", "answer")
    assert found.seconds is not None
    assert found.seconds >= 0.1
    assert found.joules_each is not None
    assert found.joules_each * found.count == pytest.approx(25 * found.seconds)
    assert found.joules_each_above_idle == pytest.approx(found.joules_each / 5)
    meter.close()
    assert source.closed


def test_stages_are_repeated_alone(plan: MeasuredPlan, noisy_image: np.ndarray, monkeypatch: Any) -> None:
    meter = meter_of(monkeypatch, Steady())
    meter.idle(0.1)
    windows = list(meter.stages(plan, noisy_image, 0.1))
    assert [each.what for each in windows] == ["preprocess", "vision", "prune", "prefill", "decode"]
    assert all(each.count > 0 and each.joules is not None for each in windows)
    prefill, decode = windows[-2:]
    assert prefill.joules_each is not None
    assert decode.joules_each is not None
    assert decode.joules is not None
    # two tokens are decoded after each prefill, whose energy is not theirs
    assert decode.joules_each == pytest.approx(decode.joules / decode.count - prefill.joules_each / 2)


def test_answers_of_one_token_decode_none(tiny_bundle: Path, noisy_image: np.ndarray, monkeypatch: Any) -> None:
    plan = MeasuredPlan(contenders(tiny_bundle, ["prunesid-16"])[0], Settings("What?", new_tokens=1, threads=1))
    *_, decode = meter_of(monkeypatch, Steady()).stages(plan, noisy_image, 0.05)
    assert decode.joules_each is None
    assert decode.reason is not None
    assert "--new-tokens 2" in decode.reason


def test_a_sensor_without_readings_gives_a_reason_and_no_number(
    plan: MeasuredPlan, noisy_image: np.ndarray, monkeypatch: Any
) -> None:
    found = meter_of(monkeypatch, Steady(broken=True)).answers(plan, [noisy_image], 0.05)
    assert (found.joules, found.joules_each, found.mean_w) == (None, None, None)
    assert found.reason is not None
    assert "the sensor went away" in found.reason


def test_a_signal_ends_a_window(plan: MeasuredPlan, monkeypatch: Any) -> None:
    monkeypatch.setattr(energy, "open_power", lambda rail, device: Steady())
    with pytest.raises(Stopped):
        EnergyMeter(None, stop=lambda: True).idle(1e6)


@pytest.mark.usefixtures("no_calibration")
@pytest.mark.parametrize("of", ["answers", "stages"])
def test_a_measurement_keeps_its_windows(tiny_bundle: Path, tmp_path: Path, monkeypatch: Any, of: Any) -> None:
    monkeypatch.setattr(energy, "open_power", lambda rail, device: Steady())
    asked = Request(
        contenders(tiny_bundle, ["prunesid-16"]), SETTINGS, noise(1), samples=1, memory=False, energy=of, windows=SHORT
    )
    with Lines(tmp_path / "r.json", header()) as lines:
        assert Bench(asked, lines, Hooks()).run() is None
        (facts,) = (line for line in lines.all() if isinstance(line, PowerFacts))
        windows = [line for line in lines.all() if isinstance(line, EnergyWindow)]
    assert (facts.source, facts.rail, facts.period_s, facts.rails) == ("steady", "VDD_IN", 0.01, Steady.rails)
    stages = ["preprocess", "vision", "prune", "prefill", "decode"] if of == "stages" else []
    assert [each.what for each in windows] == ["idle", "answer", *stages]


@pytest.mark.usefixtures("no_calibration")
def test_where_nothing_tells_the_power_that_is_said(tiny_bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(energy, "open_power", lambda rail, device: NoPower("no sensor is here"))
    asked = Request(
        contenders(tiny_bundle, ["prunesid-16"]), SETTINGS, noise(1), samples=1, memory=False, energy="stages"
    )
    said: list[str] = []
    with Lines(tmp_path / "r.json", header()) as lines:
        assert Bench(asked, lines, Hooks(said.append)).run() is None
        assert not any(isinstance(line, EnergyWindow) for line in lines.all())
        assert PowerFacts(reason="no sensor is here") in lines.all()
    assert "note: no energy is measured: no sensor is here" in said


def test_a_rail_that_is_not_there_is_refused(monkeypatch: Any) -> None:
    def refuse(rail: str | None, device: str) -> Any:
        raise UsageError(f"there is no power rail {rail!r} here")

    monkeypatch.setattr(energy, "open_power", refuse)
    with pytest.raises(UsageError, match="no power rail 'X'"):
        EnergyMeter("X")
