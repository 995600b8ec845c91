"""The simulated instruments, through the table that a relay uses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labmesh.instruments.exposure import MethodTable
from labmesh.instruments.simulated import Oscilloscope, PowerSupply, Thermometer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("kind", [PowerSupply, Thermometer, Oscilloscope])
def test_a_simulated_instrument_says_so_everywhere(kind: type) -> None:
    driver = kind()
    table = MethodTable.of(driver)
    assert "simulated" in table.doc
    assert table.has_poll
    assert table.bind("poll").run()["simulated"] is True
    for method in table.describe():
        assert method.doc, method.name
        assert "->" in method.signature, method.name


def test_a_supply_that_is_off_gives_nothing() -> None:
    supply = PowerSupply(noise=0.0)
    assert supply.set_voltage(2.5) == 2.5
    assert supply.measure() == {
        "simulated": True,
        "voltage": 0.0,
        "current": 0.0,
        "power": 0.0,
        "mode": "off",
    }
    assert supply.poll()["set_voltage"] == 2.5
    assert supply.poll()["output"] is False


def test_a_supply_drives_its_load_up_to_the_current_limit() -> None:
    supply = PowerSupply(noise=0.0, load_ohm=10.0)
    supply.set_voltage(5)
    assert supply.set_output(True) is True
    reading = supply.measure()
    assert (reading["voltage"], reading["current"], reading["power"]) == (5.0, 0.5, 2.5)
    assert reading["mode"] == "CV"
    assert supply.set_current_limit(0.2) == 0.2
    reading = supply.poll()
    assert (reading["voltage"], reading["current"], reading["mode"]) == (2.0, 0.2, "CC")
    assert supply.set_output(False) is False
    assert supply.measure()["current"] == 0.0


def test_a_seed_makes_the_readings_repeat() -> None:
    def readings(seed: int) -> list[Any]:
        supply = PowerSupply(seed=seed)
        supply.set_voltage(5)
        supply.set_output(True)
        return [supply.measure()["voltage"] for _ in range(5)]

    assert readings(1) == readings(1)
    assert readings(1) != readings(2)
    assert all(abs(voltage - 5.0) < 0.02 for voltage in readings(1))


@pytest.mark.parametrize("value", [-0.1, 30.1, math.inf, math.nan])
def test_a_voltage_out_of_range_is_refused_and_changes_nothing(value: float) -> None:
    supply = PowerSupply()
    supply.set_voltage(2.5)
    with pytest.raises(ValueError, match=r"value is .* V, outside 0 to 30 V"):
        supply.set_voltage(value)
    assert supply.poll()["set_voltage"] == 2.5


@pytest.mark.parametrize("value", ["5", True, None, [1], {}])
def test_a_voltage_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"value is a number \(V\), not"):
        PowerSupply().set_voltage(value)


def test_numpy_numbers_are_numbers() -> None:
    assert PowerSupply().set_voltage(np.float32(2.5)) == 2.5  # type: ignore[arg-type]


@pytest.mark.parametrize("on", ["off", "true", 2, None])
def test_an_output_is_switched_by_true_or_false_alone(on: Any) -> None:
    with pytest.raises(TypeError, match="on is true or false, not"):
        PowerSupply().set_output(on)


def test_a_thermometer_drifts_with_its_clock_alone() -> None:
    clock = Clock()
    thermometer = Thermometer(start=20.0, drift=1.0, swing=0.5, period_s=40.0, clock=clock)
    assert thermometer.read() == 20.0
    assert thermometer.read() == 20.0
    clock.now += 10.0
    assert thermometer.read() == pytest.approx(20.5 + 10 / 3600, abs=1e-3)
    clock.now += 3590.0
    assert thermometer.read() == pytest.approx(21.0, abs=1e-3)
    assert thermometer.poll() == {"simulated": True, "temperature": 21.0, "unit": "C"}


def test_a_thermometer_has_units_and_an_offset() -> None:
    thermometer = Thermometer(start=20.0, clock=Clock())
    assert thermometer.set_offset(5.0) == 5.0
    assert [thermometer.read(unit) for unit in ("C", "F", "K")] == [25.0, 77.0, 298.15]
    with pytest.raises(ValueError, match="unit 'R' is not known: C, F or K"):
        thermometer.read("R")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside -10 to 10 °C"):
        thermometer.set_offset(11)


def test_a_scope_returns_an_array_of_its_signal() -> None:
    scope = Oscilloscope(noise=0.0)
    assert scope.set_timebase(0.0001) == 0.0001
    sine = scope.acquire(points=1000)
    assert isinstance(sine, np.ndarray)
    assert sine.dtype == np.float64
    # Ten divisions of 0.1 ms hold one period of 1 kHz.
    assert sine == pytest.approx(np.sin(math.tau * np.arange(1000) / 1000))
    square = scope.acquire(channel=2, points=8)
    assert set(np.asarray(square)) == {-1.0, 1.0}
    assert scope.poll() == {"simulated": True, "timebase": 0.0001, "acquisitions": 2}


def test_a_scope_without_numpy_returns_the_same_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [np.asarray(Oscilloscope(noise=0.0).acquire(channel, 50)) for channel in (1, 2)]
    monkeypatch.setitem(sys.modules, "numpy", None)
    for channel in (1, 2):
        waveform = Oscilloscope(noise=0.0).acquire(channel, 50)
        assert isinstance(waveform, list)
        assert waveform == pytest.approx(expected[channel - 1].tolist())
    noisy = Oscilloscope(seed=3).acquire(points=10)
    assert noisy == Oscilloscope(seed=3).acquire(points=10)


def test_acquisitions_of_one_seed_repeat_and_differ_from_each_other() -> None:
    def acquire(seed: int) -> list[bytes]:
        scope = Oscilloscope(seed=seed)
        return [np.asarray(scope.acquire(points=100)).tobytes() for _ in range(2)]

    assert acquire(1) == acquire(1)
    assert acquire(1) != acquire(2)
    assert acquire(1)[0] != acquire(1)[1]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda scope: scope.acquire(3), "channel 3 is not there: 1"),
        (lambda scope: scope.acquire(1, 0), "points is 0 points, outside 1 to 1e"),
        (lambda scope: scope.set_timebase(0), "outside 1e-09 to 10 s"),
    ],
)
def test_a_scope_explains_what_it_refuses(call: Callable[[Oscilloscope], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(Oscilloscope())


def test_a_trigger_never_comes() -> None:
    waited: list[float] = []
    scope = Oscilloscope(sleep=waited.append)
    with pytest.raises(TimeoutError, match="no trigger within 30 s"):
        scope.wait_for_trigger(30)
    assert waited == [30.0]
