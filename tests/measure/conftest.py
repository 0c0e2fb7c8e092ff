"""Measurements without the seconds that the machine's own speed takes."""

from __future__ import annotations

import pytest
from made_up_measurement import known_speed

from vtexport.measure import bench


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "calibrate", known_speed)
