"""Properties of a driver are values: read and written by name, described without being read."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import pytest

from labmesh import expose, hidden
from labmesh.errors import BadArguments, UnknownMethod
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.messages import ValueInfo, ValueLimits


class Supply:
    """A power supply."""

    def __init__(self) -> None:
        self._voltage = 0.0
        self.reads = 0

    @property
    def voltage(self) -> Annotated[float, "V"]:
        """The output voltage."""
        self.reads += 1
        return self._voltage

    @voltage.setter
    def voltage(self, value: float) -> None:
        if value < 0:
            raise ValueError("negative")
        self._voltage = value

    @property
    def current(self) -> float:
        raise OSError("the instrument does not answer")

    @functools.cached_property
    def serial(self) -> str:
        self.reads += 1
        return "SN-1"

    def _arm(self, on: bool) -> None:
        self._armed = on

    armed = property(None, _arm)

    @property
    def _raw(self) -> int:
        return 0

    def reset(self) -> None: ...


def told(driver: object) -> dict[str, ValueInfo]:
    return {each.name: each for each in MethodTable.of(driver).values()}


def test_properties_are_values_and_not_methods() -> None:
    table = MethodTable.of(Supply())
    assert [each.name for each in table.values()] == ["armed", "current", "serial", "voltage"]
    assert [each.name for each in table.describe()] == ["reset"]
    assert "voltage" not in table
    assert len(table) == 1


def test_values_are_told_with_doc_type_and_what_can_be_done() -> None:
    supply = Supply()
    values = told(supply)
    assert values["voltage"] == ValueInfo(
        name="voltage",
        doc="The output voltage.",
        type="float",
        settable=True,
        limits=ValueLimits(unit="V"),
    )
    assert (values["current"].gettable, values["current"].settable) == (True, False)
    assert (values["serial"].gettable, values["serial"].settable) == (True, False)
    assert values["serial"].type == "str"
    armed = values["armed"]
    assert (armed.gettable, armed.settable, armed.type) == (False, True, "bool")
    assert supply.reads == 0


def test_a_value_is_read_when_the_call_runs_and_each_time() -> None:
    supply = Supply()
    table = MethodTable.of(supply)
    call = table.bind("voltage", access="get")
    assert supply.reads == 0
    assert call.run() == 0.0
    supply._voltage = 2.5
    assert call.run() == 2.5
    assert supply.reads == 2
    assert call.method == "voltage"


def test_a_value_is_written_when_the_call_runs() -> None:
    supply = Supply()
    call = MethodTable.of(supply).bind("voltage", [2.5], access="set")
    assert supply._voltage == 0.0
    assert call.run() is None
    assert supply._voltage == 2.5
    MethodTable.of(supply).bind("armed", [True], access="set").run()
    assert supply._armed is True


def test_what_a_property_raises_comes_out_of_the_call() -> None:
    table = MethodTable.of(Supply())
    with pytest.raises(OSError, match="does not answer"):
        table.bind("current", access="get").run()
    with pytest.raises(ValueError, match="negative"):
        table.bind("voltage", [-1], access="set").run()


def test_a_cached_property_is_evaluated_once() -> None:
    supply = Supply()
    table = MethodTable.of(supply)
    assert table.bind("serial", access="get").run() == "SN-1"
    assert table.bind("serial", access="get").run() == "SN-1"
    assert supply.reads == 1


def test_reading_is_read_only_and_writing_is_not() -> None:
    table = MethodTable.of(Supply())
    assert table.bind("voltage", access="get").read_only
    assert not table.bind("voltage", [1], access="set").read_only


def test_a_property_of_a_subclass_decides_how_it_is_read() -> None:
    class Doubled(property):
        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            return self if instance is None else 2 * super().__get__(instance, owner)

        def __set__(self, instance: Any, value: Any) -> None:
            super().__set__(instance, value / 2)

    class Driver:
        level_now = 4

        def _get(self) -> int:
            return self.level_now

        def _set(self, value: int) -> None:
            self.level_now = value

        level = Doubled(_get, _set)

    driver = Driver()
    table = MethodTable.of(driver)
    assert table.bind("level", access="get").run() == 8
    table.bind("level", [10], access="set").run()
    assert driver.level_now == 5


# ── asked in a wrong way ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "access", "text"),
    [
        (
            "voltage",
            "call",
            "Supply.voltage is a value, not a method: read it as .voltage or with get('voltage'); "
            "set it with .voltage = value or set('voltage', value)",
        ),
        (
            "current",
            "call",
            "Supply.current is a value, not a method: read it as .current or with get('current')",
        ),
        (
            "current",
            "set",
            "Supply.current can be read and not set: read it as .current or with get('current')",
        ),
        (
            "armed",
            "get",
            "Supply.armed can be set and not read: set it with .armed = value or "
            "set('armed', value)",
        ),
        ("reset", "get", "Supply.reset is a method, not a value: call it, as reset(...)"),
        ("reset", "set", "Supply.reset is a method, not a value: call it, as reset(...)"),
        (
            "voltag",
            "get",
            "Supply has no value 'voltag'; did you mean 'voltage'? "
            "(its values: armed, current, serial, voltage)",
        ),
        ("_raw", "get", "Supply has no value '_raw' (its values: armed, current, serial, voltage)"),
        ("reads", "set", "Supply has no value 'reads'"),
        ("__class__", "get", "Supply has no value '__class__'"),
    ],
)
def test_the_wrong_access_is_an_error_that_says_what_to_write(
    name: str, access: Any, text: str
) -> None:
    with pytest.raises(UnknownMethod) as caught:
        MethodTable.of(Supply()).bind(name, [], {}, access)
    assert str(caught.value).startswith(text)
    assert caught.value.executed is False


def test_a_driver_without_values_says_so() -> None:
    class Bare:
        def reset(self) -> None: ...

    with pytest.raises(UnknownMethod, match=r"no value 'voltage'\. It has no public values"):
        MethodTable.of(Bare()).bind("voltage", access="get")


@pytest.mark.parametrize(
    ("access", "args", "kwargs", "text"),
    [
        ("get", [1], {}, "Supply.voltage: reading it takes no arguments: get('voltage')"),
        ("get", [], {"value": 1}, "reading it takes no arguments"),
        ("set", [], {}, "setting it takes one value, by position: set('voltage', value)"),
        ("set", [1, 2], {}, "setting it takes one value"),
        ("set", [], {"value": 1}, "setting it takes one value, by position"),
    ],
)
def test_reading_takes_nothing_and_writing_one_value(
    access: Any, args: list[Any], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        MethodTable.of(Supply()).bind("voltage", args, kwargs, access)
    assert text in str(caught.value)


# ── marks and inheritance ───────────────────────────────────────────────────────────────────────


class Marked:
    @property
    @expose(idempotent=True, timeout=30)
    def field(self) -> float:
        """The field."""
        return 1.0

    @field.setter
    @expose(timeout=60)
    def field(self, value: float) -> None: ...

    @expose(timeout=1)
    @property
    def above(self) -> float:
        return 1.0

    @functools.cached_property
    @expose(timeout=2)
    def cached(self) -> float:
        return 1.0

    @property
    @hidden
    def secret(self) -> float:
        return 1.0

    @property
    def looked_at(self) -> float:
        return 1.0

    @looked_at.setter
    @hidden
    def looked_at(self, value: float) -> None: ...

    def _never(self, value: float) -> None: ...

    buried = property(None, hidden(_never))


def test_getter_and_setter_have_marks_of_their_own() -> None:
    table = MethodTable.of(Marked())
    reading = table.bind("field", access="get")
    assert (reading.read_only, reading.idempotent, reading.timeout_s) == (True, True, 30.0)
    writing = table.bind("field", [1], access="set")
    assert (writing.read_only, writing.idempotent, writing.timeout_s) == (False, False, 60.0)
    assert table.bind("above", access="get").timeout_s == 1.0
    assert table.bind("cached", access="get").timeout_s == 2.0


def test_a_hidden_getter_hides_the_value_and_a_hidden_setter_the_writing() -> None:
    values = told(Marked())
    assert set(values) == {"field", "above", "cached", "looked_at"}
    assert not values["looked_at"].settable
    with pytest.raises(UnknownMethod, match="can be read and not set"):
        MethodTable.of(Marked()).bind("looked_at", [1], access="set")


def test_an_overriding_property_inherits_marks_and_doc() -> None:
    class Better(Marked):
        @property
        def field(self) -> float:
            return 2.0

        @property
        def secret(self) -> float:
            return 2.0

    values = told(Better())
    assert values["field"].doc == "The field."
    assert not values["field"].settable
    assert "secret" not in values
    reading = MethodTable.of(Better()).bind("field", access="get")
    assert (reading.idempotent, reading.timeout_s) == (True, 30.0)
    assert reading.run() == 2.0


def test_a_property_may_replace_a_method_and_the_other_way_round() -> None:
    class Base:
        def level(self) -> int:
            return 1

        @property
        def gain(self) -> int:
            return 1

    class Derived(Base):
        @property
        def level(self) -> int:  # type: ignore[override]
            return 2

        def gain(self) -> int:  # type: ignore[override]
            return 2

    table = MethodTable.of(Derived())
    assert table.bind("level", access="get").run() == 2
    assert table.bind("gain").run() == 2
    assert [each.name for each in table.values()] == ["level"]


def test_neither_the_build_nor_reading_looks_at_the_attributes_of_the_driver() -> None:
    class Jealous:
        """Every look at it is an error."""

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was looked up")

        @property
        def answer(self) -> int:
            return 42

    assert MethodTable.of(Jealous()).bind("answer", access="get").run() == 42


def test_an_empty_property_is_left_out() -> None:
    assert told(type("Odd", (), {"nothing": property()})()) == {}


def test_attributes_of_the_instance_that_resemble_those_of_a_framework_do_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Lying:
        """It fails when it is asked what it is."""

        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise OSError("asked")

    class Lookalike:
        def __init__(self) -> None:
            self.parameters = {"gain": 5, "offset": None}
            self.submodules = {"stage": Lying()}
            self.parent = self
            self.axis = Lying()

        @property
        def level(self) -> float:
            return 1.0

    assert list(told(Lookalike())) == ["level"]
    assert "Lookalike.parameters is left out" in caplog.text


def test_an_object_that_computes_its_docstring_and_fails_is_told_without() -> None:
    class Undocumented:
        @property
        def __doc__(self) -> str:  # type: ignore[override]
            raise OSError("no doc")

        def __call__(self) -> int:
            return 1

    class Driver:
        probe = Undocumented()

    table = MethodTable.of(Driver())
    assert [each.doc for each in table.describe()] == [""]
    assert table.bind("probe").run() == 1
