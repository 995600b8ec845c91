"""Instruments of QCoDeS: their parameters are values, with no glue, and are not read for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("qcodes", reason="pip install labmesh[qcodes]")

from qcodes import validators
from qcodes.instrument import Instrument
from qcodes.instrument_drivers.mock_instruments import (
    DummyChannelInstrument,
    DummyChannelOnlyInstrument,
    DummyInstrument,
    MockDAC,
    MockParabola,
)

from labmesh.errors import UnknownMethod
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.messages import ValueInfo, ValueLimits


@pytest.fixture(autouse=True)
def _instruments_are_closed() -> Iterator[None]:
    """QCoDeS remembers instruments by their names until they are closed."""
    yield
    Instrument.close_all()


class Source(Instrument):
    """A voltage source as one writes it with QCoDeS."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sent: list[Any] = []
        self.add_parameter(
            "voltage",
            label="Output voltage",
            docstring="The voltage behind the filter.",
            unit="V",
            vals=validators.Numbers(-10, 10),
            get_cmd=self._read,
            set_cmd=self.sent.append,
        )
        self.add_parameter("power", unit="W", get_cmd=self._read)
        self.add_parameter("trigger", get_cmd=False, set_cmd=self.sent.append)
        self.add_parameter("steps", vals=validators.Ints(1, 9), set_cmd=None, get_cmd=None)
        self.add_parameter("free", vals=validators.Ints(), set_cmd=None, get_cmd=None)
        self.add_parameter("half", vals=validators.Numbers(0), set_cmd=None, get_cmd=None)
        self.add_parameter("mode", vals=validators.Enum("CV", "CC"), set_cmd=None, get_cmd=None)
        self.add_parameter("output", val_mapping={"on": 1, "off": 0}, set_cmd=self.sent.append)
        self.add_parameter("lamp", vals=validators.OnOff(), set_cmd=None, get_cmd=None)
        self.add_parameter("live", vals=validators.Bool(), set_cmd=None, get_cmd=None)
        self.add_parameter("label_text", vals=validators.Strings(), set_cmd=None, get_cmd=None)
        self.add_parameter("_raw", set_cmd=None, get_cmd=None)

    def _read(self) -> float:
        if not self.sent:
            raise AssertionError("the instrument was asked")
        return float(self.sent[-1])

    def reset(self) -> None:
        self.sent.clear()

    @property
    def serial(self) -> str:
        """The serial number."""
        return "SN-1"


def values_of(driver: object) -> dict[str, ValueInfo]:
    return {each.name: each for each in MethodTable.of(driver).values()}


def test_the_values_are_the_parameters_and_the_drivers_own_properties() -> None:
    source = Source("source")
    source.parameters["not a name"] = source.parameters["power"]
    source.parameters["number"] = 5  # type: ignore[assignment]
    assert set(values_of(source)) == {
        *("IDN", "voltage", "power", "trigger", "steps", "free", "half", "mode", "output"),
        *("lamp", "live", "label_text", "serial"),
    }


def test_a_parameter_is_told_with_label_doc_unit_and_limits() -> None:
    assert values_of(Source("source"))["voltage"] == ValueInfo(
        name="voltage",
        doc="Output voltage\n\nThe voltage behind the filter.",
        settable=True,
        limits=ValueLimits(unit="V", lowest=-10, highest=10),
    )
    assert values_of(Source("second"))["power"].doc == ""


@pytest.mark.parametrize(
    ("name", "access"),
    [("voltage", (True, True)), ("power", (True, False)), ("trigger", (False, True))],
)
def test_what_can_be_got_and_set_is_what_its_commands_can(
    name: str, access: tuple[bool, bool]
) -> None:
    value = values_of(Source("source"))[name]
    assert (value.gettable, value.settable) == access


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("power", ValueLimits(unit="W")),
        ("steps", ValueLimits(lowest=1, highest=9)),
        ("free", ValueLimits()),
        ("half", ValueLimits(lowest=0)),
        ("lamp", ValueLimits(choices=["'on'", "'off'"])),
        ("live", ValueLimits(choices=["True", "False"])),
        ("label_text", ValueLimits()),
    ],
)
def test_limits_are_those_of_the_validator(name: str, limits: ValueLimits) -> None:
    assert values_of(Source("source"))[name].limits == limits


def test_the_keys_of_a_mapping_and_the_members_of_a_set_are_choices() -> None:
    values = values_of(Source("source"))
    assert sorted(values["output"].limits.choices) == ["'off'", "'on'"]
    assert sorted(values["mode"].limits.choices) == ["'CC'", "'CV'"]


def test_parameters_are_got_and_set_when_the_call_runs() -> None:
    source = Source("source")
    table = MethodTable.of(source)
    setting = table.bind("voltage", [2.5], {}, "set")
    assert source.sent == []
    setting.run()
    assert source.sent == [2.5]
    reading = table.bind("voltage", access="get")
    assert reading.run() == 2.5
    assert (reading.read_only, setting.read_only) == (True, False)
    table.bind("output", ["on"], {}, "set").run()
    assert source.sent == [2.5, 1]


def test_the_validator_of_the_parameter_refuses_what_is_out_of_range() -> None:
    source = Source("source")
    with pytest.raises(ValueError, match="11 is invalid"):
        MethodTable.of(source).bind("voltage", [11], {}, "set").run()
    assert source.sent == []


def test_a_parameter_that_cannot_be_set_says_so() -> None:
    with pytest.raises(UnknownMethod, match=r"Source\.power can be read and not set"):
        MethodTable.of(Source("source")).bind("power", [1], {}, "set")


def test_a_method_of_the_class_wins_over_a_parameter_of_the_same_name() -> None:
    source = Source("source")
    source.parameters["reset"] = source.parameters["power"]
    table = MethodTable.of(source)
    source.sent.append(1)
    table.bind("reset").run()
    assert source.sent == []
    with pytest.raises(UnknownMethod):
        table.bind("reset", access="get")


def test_submodules_and_channels_are_parts_of_the_name() -> None:
    dac = MethodTable.of(MockDAC("dac", num_channels=2))
    assert [each.name for each in dac.values() if each.name.endswith(".voltage")] == [
        "ch01.voltage",
        "ch02.voltage",
    ]
    dac.bind("ch01.voltage", [1.5], {}, "set").run()
    assert dac.bind("ch01.voltage", access="get").run() == 1.5
    assert dac.bind("ch02.voltage", access="get").run() == 0


def test_channels_that_are_only_in_a_list_have_names_in_the_list() -> None:
    values = values_of(DummyChannelOnlyInstrument("dci"))
    temperature = values["channels.ChanA_a.temperature"]
    assert temperature.limits == ValueLimits(unit="K", lowest=0, highest=300)


def test_methods_of_channels_are_there_without_those_of_every_channel() -> None:
    table = MethodTable.of(DummyChannelInstrument("dci"))
    names = [each.name for each in table.describe() if "." in each.name]
    assert names == [f"{channel}.turn_on" for channel in "ABCDEF"]
    table.bind("C.turn_on").run()
    assert "channels.ChanA_a.turn_on" in MethodTable.of(DummyChannelOnlyInstrument("dco"))


def test_a_submodule_that_holds_its_instrument_ends_there() -> None:
    dac = MockDAC("dac", num_channels=1)
    dac.submodules["ch01"].submodules["back"] = dac  # type: ignore[union-attr]
    dac.submodules["odd"] = [5]  # type: ignore[assignment]
    assert "ch01.back.IDN" not in values_of(dac)
    assert "ch01.voltage" in values_of(dac)


def test_a_parameter_that_can_neither_be_got_nor_set_is_no_value() -> None:
    source = Source("source")
    source.add_parameter("dead", get_cmd=False, set_cmd=False)
    assert "dead" not in values_of(source)


def test_parameters_of_several_values_are_read_as_they_are() -> None:
    table = MethodTable.of(DummyChannelInstrument("dci"))
    assert len(table.bind("A.dummy_multi_parameter", access="get").run()) == 2
    assert table.bind("A.dummy_array_parameter", access="get").run().shape == (5,)
    assert table.bind("A.dummy_complex", access="get").run() == 1 + 1j


def test_mock_instruments_of_qcodes_are_served_as_they_are() -> None:
    gates = MethodTable.of(DummyInstrument("gates"))
    gates.bind("dac1", [-3.5], {}, "set").run()
    assert gates.bind("dac1", access="get").run() == -3.5
    assert gates.bind("get_idn").run()["vendor"] == "QCoDeS"
    parabola = MethodTable.of(MockParabola("parabola"))
    parabola.bind("x", [2], {}, "set").run()
    assert parabola.bind("parabola", access="get").run() == 4


def test_a_parameter_that_cannot_be_described_is_left_out_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn:
        settable = True
        get_raw = None

        @property
        def gettable(self) -> bool:
            raise OSError("no hardware")

    source = Source("source")
    source.parameters["stubborn"] = Stubborn()  # type: ignore[assignment]
    assert "stubborn" not in values_of(source)
    assert "Source.stubborn is left out" in caplog.text


def test_a_literal_validator_tells_its_choices() -> None:
    source = Source("source")
    source.add_parameter(
        "range", vals=validators.LiteralValidator[Literal[1, 10]](), set_cmd=None, get_cmd=None
    )
    assert values_of(source)["range"].limits == ValueLimits(choices=["1", "10"])
