"""Simulated instruments, for demonstrations, tests and tutorials. No hardware is involved.

Their readings are computed. Each state that they publish says ``"simulated": True``, so that a
recording of it is never taken for a measurement. With ``seed=`` and ``clock=`` given, they repeat.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from labmesh.instruments.marks import expose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Oscilloscope", "PowerSupply", "Thermometer"]


class PowerSupply:
    """A simulated one-channel laboratory power supply with a resistor as its load.

    :param max_voltage: V; the highest that can be set.
    :param max_current: A; the highest limit that can be set.
    :param load_ohm: Ω; the resistor across the output.
    :param noise: V; standard deviation of the voltage readings.
    :param seed: makes the noise repeat.
    """

    def __init__(
        self,
        *,
        max_voltage: float = 30.0,
        max_current: float = 3.0,
        load_ohm: float = 10.0,
        noise: float = 0.001,
        seed: int | None = None,
    ) -> None:
        self._max_voltage = _number("max_voltage", max_voltage, 0, 1e6, "V")
        self._max_current = _number("max_current", max_current, 0, 1e6, "A")
        self._load_ohm = _number("load_ohm", load_ohm, 1e-3, 1e12, "Ω")
        self._noise = _number("noise", noise, 0, 1e6, "V")
        self._random = random.Random(seed)
        self._set_voltage = 0.0
        self._current_limit = self._max_current
        self._is_on = False

    @expose(idempotent=True)
    def set_voltage(self, value: Annotated[float, "V"]) -> Annotated[float, "V"]:
        """Set the output voltage in V; the value that was set. The output stays on or off.

        A ValueError, and nothing changed, outside 0 to ``max_voltage``.
        """
        self._set_voltage = _number("value", value, 0, self._max_voltage, "V")
        return self._set_voltage

    @expose(idempotent=True)
    def set_current_limit(self, value: Annotated[float, "A"]) -> Annotated[float, "A"]:
        """Set the current limit in A; the value that was set.

        A ValueError, and nothing changed, outside 0 to ``max_current``.
        """
        self._current_limit = _number("value", value, 0, self._max_current, "A")
        return self._current_limit

    @expose(idempotent=True)
    def set_output(self, on: bool) -> bool:
        """Switch the output on (true) or off (false)."""
        if on not in (True, False):
            # Any other text or number would count as true, "off" among them.
            raise TypeError(f"on is true or false, not {on!r}")
        self._is_on = bool(on)
        return self._is_on

    @expose(read_only=True, idempotent=True)
    def measure(self) -> dict[str, Any]:
        """Simulated readings at the load: voltage (V), current (A), power (W), and the mode.

        ``mode`` is ``CV`` (constant voltage), ``CC`` (at the current limit) or ``off``.
        """
        wanted = self._set_voltage / self._load_ohm
        is_limited = wanted > self._current_limit
        current = min(wanted, self._current_limit) if self._is_on else 0.0
        voltage = current * self._load_ohm + self._random.gauss(0.0, self._noise)
        current = voltage / self._load_ohm
        return {
            "simulated": True,
            "voltage": round(voltage, 4),
            "current": round(current, 6),
            "power": round(voltage * current, 6),
            "mode": ("CC" if is_limited else "CV") if self._is_on else "off",
        }

    @property
    def voltage(self) -> Annotated[float, "V"]:
        """The voltage at the load; to write it sets the output."""
        return float(self.measure()["voltage"])

    @voltage.setter
    @expose(idempotent=True)
    def voltage(self, value: float) -> None:
        self.set_voltage(value)

    def sweep(
        self, start: Annotated[float, "V"], stop: Annotated[float, "V"], points: int = 11
    ) -> Iterator[dict[str, Any]]:
        """Set one voltage after the other, at equal steps, and yield the readings at each."""
        for index in range(points):
            self.set_voltage(start + (stop - start) * index / max(points - 1, 1))
            yield self.measure()

    def safe_state(self) -> None:
        """Switch the output off; called when a holder of the lease has vanished."""
        self._is_on = False

    @expose(read_only=True, idempotent=True)
    def poll(self) -> dict[str, Any]:
        """The simulated state: settings and readings (V, A, W)."""
        return {
            "output": self._is_on,
            "set_voltage": self._set_voltage,
            "current_limit": self._current_limit,
            **self.measure(),
        }


class Thermometer:
    """A simulated thermometer in a room that warms, and whose air conditioning swings.

    Its reading depends on the time since it was made, and on nothing else.

    :param start: °C at the beginning.
    :param drift: °C an hour.
    :param swing: °C; amplitude of the slow oscillation.
    :param period_s: s; one oscillation.
    :param clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        start: float = 21.0,
        drift: float = 0.5,
        swing: float = 0.3,
        period_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = _number("start", start, -273.15, 1e4, "°C")
        self._drift = _number("drift", drift, -1e4, 1e4, "°C/h")
        self._swing = _number("swing", swing, 0, 1e4, "°C")
        self._period_s = _number("period_s", period_s, 1e-3, 1e9, "s")
        self._clock = clock
        self._made_at = clock()
        self._offset = 0.0

    def set_offset(self, value: float) -> float:
        """Set the correction in °C that is added to each reading, -10 to 10 °C."""
        self._offset = _number("value", value, -10, 10, "°C")
        return self._offset

    @expose(read_only=True, idempotent=True)
    def read(self, unit: Literal["C", "F", "K"] = "C") -> float:
        """One simulated reading in °C, °F or K."""
        elapsed_s = self._clock() - self._made_at
        drifted = self._start + self._drift * elapsed_s / 3600
        celsius = drifted + self._swing * math.sin(math.tau * elapsed_s / self._period_s)
        celsius += self._offset
        scales = {"C": celsius, "F": celsius * 9 / 5 + 32, "K": celsius + 273.15}
        if unit not in scales:
            raise ValueError(f"unit {unit!r} is not known: C, F or K")
        return round(scales[unit], 3)

    def poll(self) -> dict[str, Any]:
        """The simulated state: temperature in °C."""
        return {"simulated": True, "temperature": self.read(), "unit": "C"}


class Oscilloscope:
    """A simulated two-channel oscilloscope: a sine of 1 kHz on 1, a square wave of 1 kHz on 2.

    :param noise: V; standard deviation of the samples.
    :param seed: makes the noise repeat, acquisition by acquisition.
    :param sleep: waits for a number of seconds.
    """

    _SIGNAL_HZ = 1000.0
    _DIVISIONS = 10

    def __init__(
        self,
        *,
        noise: float = 0.02,
        seed: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._noise = _number("noise", noise, 0, 1e3, "V")
        self._seeds = random.Random(seed)
        self._sleep = sleep
        self._timebase_s = 0.0005
        self._acquisitions = 0

    def set_timebase(self, seconds_per_division: float) -> float:
        """Set the horizontal scale in s per division (there are 10), 1e-9 to 10 s."""
        self._timebase_s = _number("seconds_per_division", seconds_per_division, 1e-9, 10, "s")
        return self._timebase_s

    def acquire(self, channel: int = 1, points: int = 1000) -> NDArray[np.float64] | list[float]:
        """One simulated waveform in V, of 1 to 1,000,000 points over the ten divisions.

        A numpy array where numpy is installed, else a list. Sample ``i`` of ``n`` was taken at
        ``i * 10 * timebase / n`` seconds.
        """
        if channel not in (1, 2):
            raise ValueError(f"channel {channel!r} is not there: 1 (sine) or 2 (square wave)")
        count = int(_number("points", points, 1, 1_000_000, "points"))
        step = math.tau * self._SIGNAL_HZ * self._timebase_s * self._DIVISIONS / count
        seed = self._seeds.getrandbits(32)
        self._acquisitions += 1
        return _waveform(step, count, is_square=channel == 2, noise=self._noise, seed=seed)

    def wait_for_trigger(self, timeout_s: float = 1.0) -> None:
        """Wait for a trigger that never comes: a TimeoutError after ``timeout_s`` (0 to 3600 s).

        The driver is busy meanwhile, as that of a real instrument would be.
        """
        limit_s = _number("timeout_s", timeout_s, 0, 3600, "s")
        self._sleep(limit_s)
        raise TimeoutError(f"no trigger within {limit_s:g} s (nothing triggers a simulated scope)")

    def poll(self) -> dict[str, Any]:
        """The simulated state: horizontal scale (s per division) and acquisitions so far."""
        return {
            "simulated": True,
            "timebase": self._timebase_s,
            "acquisitions": self._acquisitions,
        }


def _waveform(
    step: float, count: int, *, is_square: bool, noise: float, seed: int
) -> NDArray[np.float64] | list[float]:
    """``count`` samples, ``step`` radians apart, of amplitude 1 V."""
    try:
        import numpy as np
    except ImportError:
        rng = random.Random(seed)
        sines = (math.sin(step * i) for i in range(count))
        clean = (math.copysign(1.0, sine) for sine in sines) if is_square else sines
        return [sample + rng.gauss(0.0, noise) for sample in clean]
    samples: NDArray[np.float64] = np.sin(step * np.arange(count))
    if is_square:
        np.copysign(1.0, samples, out=samples)
    samples += np.random.default_rng(seed).normal(0.0, noise, count)
    return samples


def _number(name: str, value: object, low: float, high: float, unit: str) -> float:
    """``value`` as a float, in range."""
    if isinstance(value, bool | str) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} is a number ({unit}), not {value!r}")
    number = float(value)  # type: ignore[arg-type]  # its type has __float__
    if not low <= number <= high:
        raise ValueError(f"{name} is {number:g} {unit}, outside {low:g} to {high:g} {unit}")
    return number
