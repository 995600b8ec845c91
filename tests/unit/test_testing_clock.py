"""The clock that stands still."""

from __future__ import annotations

import pytest

from labmesh.instruments.simulated import Thermometer
from labmesh.testing import ManualClock


def test_it_moves_when_it_is_told_to() -> None:
    clock = ManualClock(5.0)
    assert clock() == clock() == 5.0
    assert clock.advance(1.5) == 6.5
    clock.sleep(0.5)
    assert clock() == 7.0
    assert repr(clock) == "ManualClock(7.0)"


@pytest.mark.parametrize("seconds", [-0.1, float("nan")])
def test_it_never_goes_back(seconds: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="cannot be moved"):
        clock.advance(seconds)
    assert clock() == 0.0


def test_it_goes_where_a_clock_is_a_parameter() -> None:
    clock = ManualClock()
    thermometer = Thermometer(start=20, drift=3600, swing=0, clock=clock)
    assert thermometer.read() == 20.0
    clock.advance(1)
    assert thermometer.read() == 21.0
