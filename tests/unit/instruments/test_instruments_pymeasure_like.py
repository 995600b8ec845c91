"""Instruments of PyMeasure: their commands are values, with no glue and no command sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("pymeasure", reason="pip install labmesh[pymeasure]")

from pymeasure.instruments import Channel, Instrument
from pymeasure.instruments.fakes import FakeInstrument, SwissArmyFake
from pymeasure.instruments.validators import (
    joined_validators,
    modular_range_bidirectional,
    strict_discrete_set,
    strict_range,
    truncated_discrete_set,
    truncated_range,
)
from pymeasure.test import expected_protocol

import labmesh
from labmesh.errors import UnknownMethod
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.messages import ValueInfo, ValueLimits


class Output(Channel):
    """One output."""

    current = Channel.control(
        "CURR{ch}?",
        "CURR{ch} %g",
        "Control the current in A (float strictly from 0 to 3).",
        validator=strict_range,
        values=(0, 3),
    )

    def ramp(self, to: float, steps: int = 2) -> Iterator[float]:
        """Go there slowly."""
        for step in range(1, steps + 1):
            self.current = to * step / steps
            yield to * step / steps

    def _prepare(self) -> None:
        raise AssertionError("private")

    @labmesh.hidden
    def calibrate(self) -> None:
        raise AssertionError("hidden")


class Supply(Instrument):
    """A power supply as one writes it with PyMeasure."""

    output_1 = Instrument.ChannelCreator(Output, 1)
    outputs = Instrument.MultiChannelCreator(Output, [2, 3], prefix="out_")

    def __init__(self, adapter: Any, name: str = "Supply", **kwargs: Any) -> None:
        super().__init__(adapter, name, includeSCPI=False, **kwargs)

    voltage = Instrument.control(
        "VOLT?",
        "VOLT %g",
        "Control the voltage in Volts (float strictly from 0 to 30).",
        validator=strict_range,
        values=(0, 30),
    )
    power = Instrument.measurement("POW?", "Measure the power\nin\nWatts.")
    trigger_level = Instrument.setting(
        "TRIG %g", "Set the level in mV.", validator=truncated_range, values=[100, -100]
    )
    mode = Instrument.control(
        "MODE?", "MODE %d", "Control the mode.", values={"CV": 0, "CC": 1}, map_values=True
    )
    gain = Instrument.control(
        "GAIN?", "GAIN %d", "Control the gain.", validator=strict_discrete_set, values=[1, 10]
    )
    filter_s = Instrument.control(
        "FILT?",
        "FILT %g",
        "Control the filter in seconds.",
        validator=truncated_discrete_set,
        values=(0.1, 1.0),
    )
    slew = Instrument.control(
        "SLEW?",
        "SLEW %g",
        "Control the slew rate.",
        validator=strict_range,
        values=(0, 5),
        dynamic=True,
    )
    phase = Instrument.control(
        "PHAS?",
        "PHAS %g",
        "Control the phase in degrees.",
        validator=modular_range_bidirectional,
        values=(0, 360),
    )
    odd = Instrument.control(
        "ODD?",
        "ODD %s",
        "Control a thing in V or in A.",
        validator=joined_validators(strict_range, strict_discrete_set),
        values=((0, 1), ["MAX"]),
    )
    endless = Instrument.control(
        "E?", "E %g", "Control it in the end.", validator=strict_range, values=(0, float("inf"))
    )
    plain = Instrument.control("P?", "P %g", "Control what is in a sweep, in the end.")


def values_of(driver: object) -> dict[str, ValueInfo]:
    return {each.name: each for each in MethodTable.of(driver).values()}


@pytest.fixture
def supply() -> dict[str, ValueInfo]:
    # The protocol has no command at all: the build would fail with the first one.
    with expected_protocol(Supply, []) as instrument:
        return values_of(instrument)


def test_what_can_be_read_and_written_follows_from_the_commands(
    supply: dict[str, ValueInfo],
) -> None:
    def access(name: str) -> tuple[bool, bool]:
        return supply[name].gettable, supply[name].settable

    assert access("voltage") == (True, True)
    assert access("power") == (True, False)
    assert access("trigger_level") == (False, True)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("voltage", ValueLimits(unit="V", lowest=0, highest=30)),
        ("power", ValueLimits(unit="W")),
        ("trigger_level", ValueLimits(unit="mV", lowest=-100, highest=100)),
        ("mode", ValueLimits(choices=["'CV'", "'CC'"])),
        ("gain", ValueLimits(choices=["1", "10"])),
        ("filter_s", ValueLimits(unit="s", choices=["0.1", "1.0"])),
        ("slew", ValueLimits(lowest=0, highest=5)),
        ("phase", ValueLimits(unit="°")),
        ("odd", ValueLimits()),
        ("endless", ValueLimits()),
        ("plain", ValueLimits()),
    ],
)
def test_units_come_from_the_docs_and_limits_from_the_validators(
    supply: dict[str, ValueInfo], name: str, limits: ValueLimits
) -> None:
    assert supply[name].limits == limits


def test_docs_are_those_of_the_driver(supply: dict[str, ValueInfo]) -> None:
    assert supply["mode"].doc == "Control the mode."
    assert supply["mode"].type == ""


def test_channels_are_parts_of_the_name(supply: dict[str, ValueInfo]) -> None:
    channels = {name for name in supply if "." in name and name.endswith("current")}
    assert channels == {"output_1.current", "out_2.current", "out_3.current"}
    assert supply["out_2.current"].limits == ValueLimits(unit="A", lowest=0, highest=3)


def test_methods_of_channels_are_there_without_those_of_every_channel() -> None:
    with expected_protocol(Supply, [("CURR2 0.5", None), ("CURR2 1", None)]) as supply:
        table = MethodTable.of(supply, read_only=["*.ramp"])
        told = {each.name: each for each in table.describe() if "." in each.name}
        assert list(told) == ["out_2.ramp", "out_3.ramp", "output_1.ramp"]
        ramp = told["out_2.ramp"]
        assert (ramp.signature, ramp.doc) == (
            "(to: float, steps: int = 2) -> Iterator[float]",
            "Go there slowly.",
        )
        assert (ramp.yields, ramp.read_only) == (True, True)
        assert list(table.bind("out_2.ramp", [1.0]).run()) == [0.5, 1.0]


def test_reading_and_writing_send_the_commands_of_the_instrument() -> None:
    exchange = [("VOLT 2.5", None), ("VOLT?", "2.5"), ("CURR3 1", None), ("CURR1?", "0.5")]
    with expected_protocol(Supply, exchange) as instrument:
        table = MethodTable.of(instrument)
        table.bind("voltage", [2.5], {}, "set").run()
        assert table.bind("voltage", access="get").run() == 2.5
        table.bind("out_3.current", [1], {}, "set").run()
        assert table.bind("output_1.current", access="get").run() == 0.5


def test_the_validator_of_the_instrument_refuses_what_is_out_of_range() -> None:
    with expected_protocol(Supply, []) as instrument:
        call = MethodTable.of(instrument).bind("voltage", [31], {}, "set")
        with pytest.raises(ValueError, match="31"):
            call.run()


def test_a_measurement_cannot_be_set_and_a_setting_not_be_read() -> None:
    with expected_protocol(Supply, []) as instrument:
        table = MethodTable.of(instrument)
        with pytest.raises(UnknownMethod, match=r"Supply\.power can be read and not set"):
            table.bind("power", [1], {}, "set")
        with pytest.raises(UnknownMethod, match=r"Supply\.trigger_level can be set and not read"):
            table.bind("trigger_level", access="get")
        with pytest.raises(
            UnknownMethod, match=r"not a method: read it with get\('out_2.current'\)"
        ):
            table.bind("out_2.current")


def test_limits_that_an_instrument_changes_for_itself_are_those_that_are_told() -> None:
    class Faster(Supply):
        slew_values = (0, 50)

    with expected_protocol(Faster, []) as instrument:
        assert values_of(instrument)["slew"].limits.highest == 50
        instrument.slew_values = (0, 500)
        assert values_of(instrument)["slew"].limits.highest == 500


def test_a_fake_instrument_of_pymeasures_own_is_served_as_it_is() -> None:
    class Fake(FakeInstrument):
        level = FakeInstrument.control("", "%g", "Control the level in dB.", values=(0, 9))

    fake = MethodTable.of(Fake())
    fake.bind("level", [3], {}, "set").run()
    assert fake.bind("level", access="get").run() == 3
    tool = MethodTable.of(SwissArmyFake(wait=0))
    tool.bind("output_voltage", [1.5], {}, "set").run()
    assert tool.bind("output_voltage", access="get").run() == 1.5
    assert tool.bind("frame", access="get").run().shape == (1080, 1920)
